"""Score SDE (Song et al. 2021), Table 1: predictor and corrector, for the VE and VP SDEs. CIFAR-10.

The paper uses the network of Ho et al., trained at 1,000 noise levels by the discrete objectives; here training is in
continuous time, for VE with the Fourier embedding of the paper's own networks.
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

# Noise of 0.01 to 50 for data in [0, 1] (configs/default_cifar10_configs.py) is 0.02 to 100 for ours in [-1, 1].
VE = {"process.name": "ve", "process.sigma_min": 0.02, "process.sigma_max": 100.0, "process.t_min": 1e-5,
      "sample.t_min": 1e-5, "network.embedding": "fourier"}
VP = {"process.name": "vp", "process.beta_min": 0.1, "process.beta_max": 20.0, "process.t_min": 1e-5,
      "sample.t_min": 1e-3}
PREDICTORS = {"ancestral": "euler_ancestral", "reverse diffusion": "reverse_diffusion", "probability flow": "euler"}
CELLS = {  # P1000, P2000, PC1000
    ("VE", "ancestral"): ((4.98, .06), (4.88, .06), (3.62, .03)),
    ("VE", "reverse diffusion"): ((4.79, .07), (4.74, .08), (3.60, .02)),
    ("VE", "probability flow"): ((15.41, .15), (10.54, .08), (3.51, .04)),
    ("VP", "ancestral"): ((3.24, .02), (3.24, .02), (3.21, .02)),
    ("VP", "reverse diffusion"): ((3.21, .02), (3.19, .02), (3.18, .01)),
    ("VP", "probability flow"): ((3.59, .04), (3.23, .03), (3.06, .03)),
}
SNR = {  # Table 5
    ("VE", "ancestral"): 0.17, ("VE", "reverse diffusion"): 0.16, ("VE", "probability flow"): 0.17,
    ("VP", "ancestral"): 0.01, ("VP", "reverse diffusion"): 0.01, ("VP", "probability flow"): 0.04,
}
BUDGETS = ("P1000", "P2000", "PC1000")


def rows(one: int) -> list[Row]:
    """The table's rows. one: the steps that stand for 1,000."""
    found = []
    for (sde, predictor), cells in CELLS.items():
        for budget, cell in zip(BUDGETS, cells):
            found.append(Row(f"{sde}, {predictor}, {budget}", {
                **(VE if sde == "VE" else VP), "sample.solver": PREDICTORS[predictor],
                "sample.steps": one * (2 if budget == "P2000" else 1),
                **({"sample.corrector": "langevin", "sample.corrector_snr": SNR[sde, predictor]}
                   if budget == "PC1000" else {})},
                {"FID": Cell(*cell)}))
    return found


BASE = {"prediction": "eps", "loss.space": "eps", "loss.weighting": "simple", "sample.spacing": "uniform",
        "sample.clip": False}

TABLE = Table(
    title="Score SDE, Table 1: predictor and corrector", source="Song et al. 2021, arXiv 2011.13456, Table 1",
    columns=[Column("FID", "fd")], rows=rows(100),
    findings=[Finding("a corrector is worth more than twice the predictor's steps", "FID", [
        (f"{sde}, {predictor}, PC1000", f"{sde}, {predictor}, P2000") for sde, predictor in CELLS])],
    scales={"small": small(BASE, about="100 steps stand for 1,000."),
            "mini": mini(BASE, about="100 steps stand for 1,000.")})
