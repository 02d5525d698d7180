"""JiT (Li & He 2025), Table 4: what language models' transformers brought, each row with the ones before."""
from experiments.proxies import mini, paper
from experiments.table import Cell, Column, Finding, Row, Table
from experiments.tables.jit_table2 import BASE

OFF = {"network.rotary": False, "network.qk_norm": False, "network.class_tokens": 0}
ROPE = {"network.rotary": True, "network.qk_norm": True}
TOKENS = {"network.class_tokens": 32, "network.class_tokens_from": 4}
X = {"prediction": "x0", "loss.space": "velocity", "loss.weighting": "clipped_velocity", "sample.least_noise": 0.05}
ROWS = ["SwiGLU, RMSNorm", "+ RoPE, qk-norm", "+ in-context class tokens"]

TABLE = Table(
    title="JiT, Table 4: general-purpose improvements", source="Li & He 2025, arXiv 2511.13720, Table 4 (ImageNet 256, "
    "JiT-B/16)",
    columns=[Column("FID", "fd")],
    rows=[Row(ROWS[0], OFF, {"FID": Cell(6.32, note="7.48 without an interval of guidance")}),
          Row(ROWS[1], OFF | ROPE, {"FID": Cell(5.44, note="6.69 without")}),
          Row(ROWS[2], ROPE | TOKENS, {"FID": Cell(4.37, note="5.49 without")})],
    findings=[Finding("each row is better than the one before", "FID", [(ROWS[1], ROWS[0]), (ROWS[2], ROWS[1])])],
    scales={"paper": paper({"train.duration": "200 epochs"}, config="configs/jit.py", about="The paper takes the best "
                           "scale of guidance and average of each row."),
            "mini": mini({**BASE, **X, "network.channels": 64, "network.depth": 4, "network.heads": 4,
                          "network.patch": 2, "network.bottleneck": 4, "network.num_classes": 10,
                          "network.label_dropout": 0.1, "sample.guidance.name": "classifier_free",
                          "sample.guidance.scale": 1.5}, config="configs/digits_dit.py", about="Patches of 4 numbers "
                         "and tokens of 64, with 4 tokens of the class from the second block on.",
                         of_rows={ROWS[2]: {"network.class_tokens": 4, "network.class_tokens_from": 1}})})
