"""Min-SNR (Hang et al. 2023), its weightings for each prediction. The paper shows curves, of ImageNet 256."""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

PREDICTIONS = {"x": "x0", "eps": "eps", "v": "v"}
WEIGHTINGS = {"constant": {}, "SNR": {"loss.weighting": "snr"},
              "P2": {"loss.weighting": "p2"},
              "Min-SNR-5": {"loss.weighting": "min_snr", "loss.gamma": 5.0}}
CURVE = Cell(None, note="a curve")
BASE = {"process.name": "cosine", "loss.space": "eps", "sample.solver": "ddim", "sample.steps": 100}


def weighting(prediction: str, name: str) -> dict:
    """The paper's constant is on x_0; its SNR then is L_simple on eps."""
    return {"loss.space": "x0", "loss.weighting": "simple"} if name == "constant" else WEIGHTINGS[name]


# eps by a constant weight on x_0 has a weight of 1 / SNR, without bound: it is left out, as there.
PAIRS = [(p, w) for p in PREDICTIONS for w in WEIGHTINGS if (p, w) != ("eps", "constant")]

TABLE = Table(
    title="Min-SNR: weightings", source="Hang et al. 2023, arXiv 2303.09556",
    columns=[Column("FID", "fd")],
    rows=[Row(f"{p}, {w}", {"prediction": PREDICTIONS[p], **weighting(p, w)}, {"FID": CURVE}) for p, w in PAIRS],
    findings=[Finding(f"Min-SNR-5 is better than {w}, at equal training", "FID", [
        (f"{p}, Min-SNR-5", f"{p}, {w}") for p, other in PAIRS if other == w]) for w in ("constant", "SNR", "P2")],
    scales={"small": small(BASE), "mini": mini(BASE, about="By DDIM of 100 steps.")})
