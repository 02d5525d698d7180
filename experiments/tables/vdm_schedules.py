"""VDM (Kingma et al. 2021): the bound under a fixed and a learned schedule. CIFAR-10 without augmentation."""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

NLL = "NLL, bits/dim"
BASE = {"process.name": "learned", "process.log_snr_min": -5.0, "process.log_snr_max": 13.3, "prediction": "eps",
        "loss.name": "continuous_vlb", "loss.stratified": True,
        "likelihood.estimator": "continuous_vlb", "likelihood.steps": 100, "sample.solver": "ancestral",
        "sample.variance": "small", "sample.spacing": "uniform", "sample.steps": 250, "sample.t_min": 1 / 250,
        "sample.clip": False}

TABLE = Table(
    title="VDM: fixed and learned schedule", source="Kingma et al. 2021, arXiv 2107.00630, Fig. 4b and Table 1",
    columns=[Column(NLL, "bits_per_dim")],
    rows=[Row("log-SNR linear in t", {"process.hidden": 0}, {NLL: Cell(2.66, doubt="second hand", note="Fig. 4b")}),
          Row("learned, ends fixed", {"process.hidden": 128}, {NLL: Cell(2.66, doubt="second hand", note="Fig. 4b")}),
          Row("learned, ends too", {"process.hidden": 128, "process.learned_ends": True},
              {NLL: Cell(2.65, doubt="second hand")})],
    findings=[Finding("the bound of infinite depth depends on the ends alone, not on what is between them", NLL, [])],
    scales={"small": small(BASE, examples=256), "mini": mini(BASE, config="configs/digits_vdm.py", examples=128)})
