"""Min-SNR (Hang et al. 2023), its weightings for each prediction.

Fig. 5 has curves for a ViT on the latents of ImageNet 256; Table 1 has the U-Net's FID at 1M steps for two weightings.
The paper samples with EDM's Heun method; here DDIM is used.
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

PREDICTIONS = {"x": "x0", "eps": "eps", "v": "v"}
WEIGHTINGS = {"constant": {}, "SNR": {"loss.weighting": "snr"}, "max(SNR, 1)": {"loss.weighting": "truncated_snr"},
              "Min-SNR-5": {"loss.weighting": "min_snr", "loss.gamma": 5.0}}
CURVE = Cell(None, note="a curve")
CELLS = {("x", "constant"): Cell(8.33, note="its baseline"), ("x", "Min-SNR-5"): Cell(4.28),
         ("eps", "SNR"): Cell(4.21, note="its baseline"), ("eps", "Min-SNR-5"): Cell(4.14)}
BASE = {"process.name": "cosine", "loss.space": "eps", "sample.solver": "ddim", "sample.steps": 100}


def weighting(name: str) -> dict:
    """The overrides of a weighting. In the paper all weigh x_0, where constant is 1 and SNR is L_simple on eps."""
    return {"loss.space": "x0", "loss.weighting": "simple"} if name == "constant" else WEIGHTINGS[name]


# eps by a weight on x_0 that does not fall with the SNR diverges (Salimans & Ho 2022, Table 1).
PAIRS = [(p, w) for p in PREDICTIONS for w in WEIGHTINGS if p != "eps" or w not in ("constant", "max(SNR, 1)")]

TABLE = Table(
    title="Min-SNR: weightings", source="Hang et al. 2023, arXiv 2303.09556, Fig. 5 and Table 1 (ImageNet 256)",
    columns=[Column("FID", "fd")],
    rows=[Row(f"{p}, {w}", {"prediction": PREDICTIONS[p], **weighting(w)}, {"FID": CELLS.get((p, w), CURVE)})
          for p, w in PAIRS],
    findings=[Finding(f"Min-SNR-5 is better than {w}, at equal training", "FID", [
        (f"{p}, Min-SNR-5", f"{p}, {w}") for p, other in PAIRS if other == w]) for w in ("constant", "SNR",
                                                                                         "max(SNR, 1)")],
    scales={"small": small(BASE), "mini": mini(BASE, about="By DDIM of 100 steps.")})
