"""EDM (Karras et al. 2022), Table 2, its rows C to E: preconditioning, and then the loss. Unconditional CIFAR-10.

A and B have other hyperparameters, and F needs a network conditioned on augmentation. In the paper VP and VE have
different networks; here they are only the process and preconditioning of the baseline, and E is the same for both. All
are sampled by EDM's deterministic sampler, whose noise levels 0.002 .. 80 are clipped to those of the model, as in
their code: VE's begin at 0.02.
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

VP = {"process.name": "vp", "process.t_min": 1e-5}
VE = {"process.name": "ve", "process.sigma_min": 0.02, "process.sigma_max": 100.0, "process.t_min": 1e-5}
OLD = {"loss.space": "eps", "loss.weighting": "simple", "loss.density": "uniform"}
NEW = {"process.name": "edm", "process.sigma_min": 0.002, "process.sigma_max": 80.0, "prediction": "edm",
       "loss.space": "x0", "loss.weighting": "edm", "loss.density": "log_normal"}
BASE = {"sample.solver": "heun", "sample.spacing": "karras", "sample.schedule": "linear", "sample.sigma_min": 0.002,
        "sample.sigma_max": 80.0, "sample.steps": 18, "sample.clip": False}

TABLE = Table(
    title="EDM, Table 2: preconditioning and loss", source="Karras et al. 2022, arXiv 2206.00364, Table 2",
    columns=[Column("FID", "fd")],
    rows=[Row("C, VP", {**VP, **OLD, "prediction": "edm_vp"}, {"FID": 2.31}),
          Row("C, VE", {**VE, **OLD, "prediction": "edm_ve"}, {"FID": 2.83}),
          Row("D, VP: EDM's preconditioning", {**VP, **OLD, "prediction": "edm"}, {"FID": 2.29}),
          Row("D, VE: EDM's preconditioning", {**VE, **OLD, "prediction": "edm"}, {"FID": 3.10}),
          Row("E: EDM's loss too", NEW, {"FID": Cell(2.05, note="VE's network: 1.99")})],
    findings=[Finding("EDM's loss is better", "FID", [("E: EDM's loss too", "D, VP: EDM's preconditioning"),
                                                      ("E: EDM's loss too", "D, VE: EDM's preconditioning")])],
    scales={"small": small({**BASE, "sigma_data": 0.5}),
            "mini": mini(BASE, config="configs/digits_edm.py", about="sigma_data is that of the digits, 0.75.")})
