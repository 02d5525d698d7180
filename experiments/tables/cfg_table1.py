"""Classifier-free guidance (Ho & Salimans 2022), Table 1: its strength w, on one model that drops 1 label in 10."""
from experiments.proxies import mini, paper, small
from experiments.table import Cell, Column, Finding, Row, Table

CELLS = {0.0: (1.80, 53.71), 0.1: (1.55, 66.11), 0.2: (2.04, 78.91), 0.3: (3.03, 92.8), 0.4: (4.30, 106.2),
         0.5: (5.74, 119.3), 0.6: (7.19, 131.1), 0.7: (8.62, 141.8), 0.8: (10.08, 151.6), 0.9: (11.41, 161.0),
         1.0: (12.6, 170.1), 2.0: (21.03, 225.5), 3.0: (24.83, 250.4), 4.0: (26.22, 260.2)}
LABELS = {"network.label_dropout": 0.1, "sample.guidance.name": "classifier_free"}

TABLE = Table(
    title="Classifier-free guidance, Table 1: strength",
    source="Ho & Salimans 2022, arXiv 2207.12598, Table 1 (ImageNet 64)",
    columns=[Column("FID", "fd"), Column("IS", "score", lower_is_better=False)], x="sample.guidance.scale",
    rows=[Row(f"w {w:g}", {"sample.guidance.scale": 1 + w},
              {"FID": Cell(fid, doubt="recalled"), "IS": Cell(score, doubt="recalled")})
          for w, (fid, score) in CELLS.items()],
    findings=[Finding("the score rises with w", "IS", [("w 4", "w 1"), ("w 1", "w 0")]),
              Finding("much guidance costs diversity, and FID", "FID", [("w 0", "w 1"), ("w 1", "w 4")])],
    scales={"paper": paper(LABELS, config="configs/imagenet64_adm.py", about="ADM, as in the paper, which trains in "
                           "continuous time with another schedule."),
            "small": small({**LABELS, "network.num_classes": 10, "sample.solver": "ddim", "sample.steps": 100}),
            "mini": mini({**LABELS, "sample.steps": 50}, config="configs/digits_guided.py",
                         about="By DDIM of 50 steps.")})
