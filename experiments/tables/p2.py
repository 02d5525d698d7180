"""P2 (Choi et al. 2022), baseline against P2 weighting. The paper has five data sets; FFHQ's is shown.

FFHQ's gamma is 0.5, according to the author (issue 4 of the code's repository), the others' is 1.
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

BASE = {"process.name": "linear", "prediction": "eps", "loss.space": "eps", "loss.weighting": "simple",
        "sample.solver": "ddim", "sample.steps": 100}

TABLE = Table(
    title="P2: weighting of the noise levels", source="Choi et al. 2022, arXiv 2204.00227 (FFHQ 256)",
    columns=[Column("FID", "fd")],
    rows=[Row("baseline", {}, {"FID": Cell(7.86, doubt="recalled")}),
          Row("P2, gamma 0.5", {"loss.weighting": "p2", "loss.p2_gamma": 0.5},
              {"FID": Cell(6.92, doubt="second hand")}),
          Row("P2, gamma 1", {"loss.weighting": "p2", "loss.p2_gamma": 1.0})],
    findings=[Finding("P2 is better than equal weights", "FID", [("P2, gamma 0.5", "baseline"),
                                                                 ("P2, gamma 1", "baseline")])],
    scales={"small": small(BASE), "mini": mini(BASE, about="By DDIM of 100 steps.")})
