"""EDM (Karras et al. 2022), Fig. 4 and Table 4: an ablation of the stochastic sampler, on one model.

The paper searches S_churn and the other parameters for each row, model and number of steps; here all rows use the
values of Table 5 for CIFAR-10 and VP, for the parameters that they have.
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table
from experiments.tables.edm_samplers import EDM

CHURN, LIMITS, NOISE = {"sample.churn": 30.0}, {"sample.churn_min": 0.01, "sample.churn_max": 1.0}, {
    "sample.churn_noise": 1.007}
KINDS = {  # name -> overrides, evaluations, FID
    "deterministic": ({}, 35, 2.93),
    "churn at all noise levels, S_noise 1": (CHURN, 95, 2.69),
    "churn at all noise levels": ({**CHURN, **NOISE}, 127, 2.54),
    "S_noise 1": ({**CHURN, **LIMITS}, 95, 2.52),
    "all": ({**CHURN, **LIMITS, **NOISE}, 383, 2.27),
}

TABLE = Table(
    title="EDM: the stochastic sampler", source="Karras et al. 2022, arXiv 2206.00364, Table 4 (CIFAR-10, VP)",
    columns=[Column("FID", "fd")],
    rows=[Row(name, {**overrides, "sample.steps": (n + 1) // 2}, {"FID": Cell(
        fid, doubt="second hand", note=f"{n} evaluations")}) for name, (overrides, n, fid) in KINDS.items()],
    findings=[Finding("each part helps", "FID", [("all", name) for name in KINDS if name != "all"])],
    scales={"small": small(EDM),
            "mini": mini(config="configs/digits_edm.py", about="The model of configs/digits_edm.py.")})
