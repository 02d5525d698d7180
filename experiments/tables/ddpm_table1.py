"""DDPM (Ho, Jain & Abbeel 2020), Table 1, the paper's own rows: the bound against L_simple. Unconditional CIFAR-10."""
from experiments.proxies import mini, paper, small
from experiments.table import Cell, Column, Finding, Row, Table

CHAIN = {"process.name": "linear", "prediction": "eps", "sample.solver": "ancestral", "sample.variance": "large",
         "likelihood.variance": "large"}
SIMPLE = {"loss.name": "denoising", "loss.space": "eps", "loss.weighting": "simple"}

TABLE = Table(
    title="DDPM, Table 1: the bound and L_simple", source="Ho et al. 2020, arXiv 2006.11239, Table 1",
    columns=[Column("FID", "fd"), Column("IS", "score", lower_is_better=False),
             Column("NLL, bits/dim", "bits_per_dim")],
    rows=[
        Row("L, fixed isotropic variance", {"loss.name": "vlb", "loss.variance": "large"},
            {"FID": 13.51, "IS": Cell(7.67, 0.13), "NLL, bits/dim": Cell(3.70, note="at most")}),
        Row("L_simple", SIMPLE, {"FID": 3.17, "IS": Cell(9.46, 0.11), "NLL, bits/dim": Cell(3.75, note="at most")}),
    ],
    findings=[Finding("L_simple gives better samples", "FID", [("L_simple", "L, fixed isotropic variance")]),
              Finding("the bound gives better codes", "NLL, bits/dim", [("L, fixed isotropic variance", "L_simple")])],
    scales={"paper": paper(CHAIN), "small": small({**CHAIN, "sample.steps": 250}, examples=512),
            "mini": mini({**CHAIN, "sample.steps": 250}, examples=128)})
