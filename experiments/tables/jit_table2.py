"""JiT (Li & He 2025), Table 2(a): prediction and loss space, for patches of as many numbers as a token has.

The network is JiT's before the bottleneck and Table 4's improvements. The paper clips each division by t or 1 - t at
0.05; here that is done for x_0, in the loss in v and in the sampler, while eps is predicted down to 0.001 of the data.
"""
from experiments.proxies import mini, paper
from experiments.table import Column, Finding, Row, Table

NAMES = {"x": "x0", "eps": "eps", "v": "velocity"}
FID = {"x": (10.14, 379.21, 107.55), "eps": (10.45, 394.58, 126.88), "v": (8.62, 372.38, 96.53)}  # by the loss
BEFORE = {"network.bottleneck": 0, "network.rotary": False, "network.qk_norm": False, "network.class_tokens": 0}
BASE = {"network.name": "jit", **BEFORE, "process.name": "flow", "process.network_time": "data",
        "loss.density": "logit_normal", "loss.density_mean": 0.8, "loss.density_std": 0.8, "sample.solver": "heun",
        "sample.spacing": "uniform", "sample.steps": 50, "sample.clip": False}


def overrides(prediction: str, loss: str) -> dict:
    """Of a cell; its name says both."""
    clipped = (prediction, loss) == ("x", "v")
    return {"prediction": NAMES[prediction], "loss.space": NAMES[loss],
            "loss.weighting": "clipped_velocity" if clipped else "simple",
            "process.t_max": 0.999 if prediction == "eps" else 1.0, "sample.least_noise": 0.05 * (prediction == "x")}


TABLE = Table(
    title="JiT, Table 2(a): prediction and loss", source="Li & He 2025, arXiv 2511.13720, Table 2(a) (ImageNet 256)",
    columns=[Column("FID", "fd")],
    rows=[Row(f"{loss}-loss, {prediction}-prediction", overrides(prediction, loss), {"FID": fid})
          for loss, cells in FID.items() for prediction, fid in zip(NAMES, cells)],
    findings=[Finding("only x-prediction works, with any loss", "FID", [
                  (f"{loss}-loss, x-prediction", f"{loss}-loss, {other}-prediction") for loss in NAMES
                  for other in ("eps", "v")]),
              Finding("its loss in v is best", "FID", [("v-loss, x-prediction", f"{other}-loss, x-prediction")
                                                       for other in ("x", "eps")])],
    scales={"paper": paper({**BEFORE, "train.duration": "200 epochs", "sample.guidance.interval_high": float("inf")},
                           config="configs/jit.py", about="JiT-B/16 for 200 epochs; the paper takes the best scale of "
                           "guidance and average of each row."),
            "mini": mini({**BASE, "network.channels": 64, "network.depth": 4, "network.heads": 4, "network.patch": 8},
                         config="configs/digits_dit.py", about="One patch of 64 numbers and tokens of 64, without "
                         "classes.")})
