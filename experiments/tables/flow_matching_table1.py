"""Flow matching (Lipman et al. 2023), Table 1: path and objective, by the probability flow. CIFAR-10.

The paper samples with an adaptive solver, which determines each row's evaluations. At smaller scales all rows take the
same number. The network and training follow the paper's Table 3, second hand.
"""
from experiments.proxies import mini, paper, small
from experiments.table import Cell, Column, Finding, Row, Table

VP = {"process.name": "vp", "process.beta_min": 0.1, "process.beta_max": 20.0, "process.t_min": 1e-5,
      "sample.t_min": 1e-5}  # recalled
NLL = "NLL, bits/dim"


def cells(nll: float, fid: float, evaluations: int) -> dict:
    return {NLL: Cell(nll, doubt="second hand"), "FID": Cell(fid, doubt="second hand",
                                                             note=f"{evaluations} evaluations")}


BASE = {"loss.name": "denoising", "loss.weighting": "simple", "loss.density": "uniform", "sample.solver": "heun",
        "sample.spacing": "uniform", "sample.steps": 50, "sample.clip": False, "likelihood.estimator": "ode",
        "likelihood.steps": 100}
ADAPTIVE = {"sample.solver": "adaptive_ode", "sample.tolerance": 1e-5, "likelihood.tolerance": 1e-5,
            "likelihood.samples": 50}
NETWORK = {"network.channels": 256, "network.blocks": 2, "network.multipliers": (1, 2, 2, 2),
           "network.attention_resolutions": (16,), "network.head_channels": 64, "network.dropout": 0.0,
           "network.scale_shift": True, "network.downsample": ("resblock",), "network.upsample": ("resblock",),
           "optimizer.learning_rate": 5e-4, "optimizer.decay": "linear", "optimizer.warmup": "45k steps",
           "train.batch_size": 256, "train.duration": "391k steps"}

TABLE = Table(
    title="Flow matching, Table 1: path and objective", source="Lipman et al. 2023, arXiv 2210.02747, Table 1",
    columns=[Column("FID", "fd"), Column(NLL, "bits_per_dim")],
    rows=[Row("DDPM", {**VP, "prediction": "eps", "loss.space": "eps"}, cells(3.12, 7.48, 274)),
          Row("score matching", {**VP, "prediction": "score", "loss.space": "eps"}, cells(3.16, 19.94, 242)),
          Row("ScoreFlow", {**VP, "prediction": "score", "loss.space": "eps", "loss.weighting": "likelihood"},
              cells(3.09, 20.78, 428)),
          Row("flow matching, diffusion path", {**VP, "prediction": "velocity", "loss.space": "velocity"},
              cells(3.10, 8.06, 183)),
          Row("flow matching, OT path", {"process.name": "flow", "prediction": "velocity", "loss.space": "velocity"},
              cells(2.99, 6.35, 142))],
    findings=[Finding("the OT path has the best samples", "FID", [
        ("flow matching, OT path", other) for other in ("DDPM", "score matching", "ScoreFlow",
                                                       "flow matching, diffusion path")]),
              Finding("and the best likelihood", NLL, [("flow matching, OT path", other) for other in (
                  "DDPM", "score matching", "ScoreFlow", "flow matching, diffusion path")])],
    scales={"paper": paper({**BASE, **NETWORK, **ADAPTIVE}, about="Network and training as others quote the paper, "
                           "in an ADM U-Net; needs the extra `ode`."),
            "small": small(BASE, examples=256), "mini": mini(BASE, examples=64)})
