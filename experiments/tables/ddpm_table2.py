"""DDPM (Ho, Jain & Abbeel 2020), Table 2: predictions and objectives. Unconditional CIFAR-10.

The paper's "learned variance" is a diagonal that the network outputs directly; here it is the range of Nichol &
Dhariwal (2021), between the two variances of the paper, which can be trained.
"""
from experiments.proxies import mini, paper, small
from experiments.table import Cell, Column, Finding, Row, Table

BOUND = {"loss.name": "vlb", "loss.variance": "large"}
LEARNED = {"loss.name": "vlb", "learned_range": True, "sample.variance": "learned_range"}
SIMPLE = {"loss.name": "denoising", "loss.weighting": "simple"}
CHAIN = {"process.name": "linear", "sample.solver": "ancestral", "sample.variance": "large"}
UNSTABLE = Cell(None, note="unstable")

TABLE = Table(
    title="DDPM, Table 2: prediction and objective", source="Ho et al. 2020, arXiv 2006.11239, Table 2",
    columns=[Column("FID", "fd"), Column("IS", "score", lower_is_better=False)],
    rows=[
        Row("mean, L, learned variance", {"prediction": "mean", **LEARNED}, {"FID": 23.69, "IS": Cell(7.28, 0.10)}),
        Row("mean, L, fixed variance", {"prediction": "mean", **BOUND}, {"FID": 13.22, "IS": Cell(8.06, 0.09)}),
        Row("mean, squared error", {"prediction": "mean", **SIMPLE, "loss.space": "mean"},
            {"FID": UNSTABLE, "IS": UNSTABLE}),
        Row("eps, L, learned variance", {"prediction": "eps", **LEARNED}, {"FID": UNSTABLE, "IS": UNSTABLE}),
        Row("eps, L, fixed variance", {"prediction": "eps", **BOUND}, {"FID": 13.51, "IS": Cell(7.67, 0.13)}),
        Row("eps, L_simple", {"prediction": "eps", **SIMPLE, "loss.space": "eps"},
            {"FID": 3.17, "IS": Cell(9.46, 0.11)}),
    ],
    findings=[
        Finding("L_simple on eps is better than all else", "FID", [
            ("eps, L_simple", other) for other in ("mean, L, learned variance", "mean, L, fixed variance",
                                                   "eps, L, fixed variance")]),
        Finding("under L, a fixed variance is better than a learned one", "FID", [
            ("mean, L, fixed variance", "mean, L, learned variance")]),
        Finding("predicting the mean works only under L, not by its plain squared error", "FID", [
            ("mean, L, fixed variance", "mean, squared error")]),
    ],
    scales={"paper": paper(CHAIN), "small": small({**CHAIN, "sample.steps": 250}),
            "mini": mini({**CHAIN, "sample.steps": 250}, about="Chains of 250 steps of the 1,000.")})
