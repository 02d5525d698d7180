"""Improved DDPM (Nichol & Dhariwal 2021), Table 1: schedule, length and objective. Unconditional ImageNet 64.

The paper's FID is of 10,000 samples. The network is that of Appendix A: 128 channels times (1, 2, 3, 4), 120M
parameters; its dropout is not stated, and not used here.
"""
from experiments.proxies import paper
from experiments.table import Finding, Row, Table
from experiments.tables.iddpm_table2 import NLL, cells
from experiments.tables.iddpm_table2 import TABLE as CIFAR  # the same rows, on other data

CELLS = ((3.99, 32.5), (3.77, 31.3), (3.66, 32.2), (3.68, 27.0), (3.62, 28.0), (3.57, 56.7))
LONG = {"hybrid": (3.57, 19.2), "vlb": (3.53, 40.1)}
IMAGENET = {"data.dataset": "imagenet64", "data.size": 64, "network.multipliers": (1, 2, 3, 4), "network.dropout": 0.0,
            "train.duration": "200k steps", "evaluate.images": 10_000}

ROWS = [Row(row.name, row.overrides, cells(*pair)) for row, pair in zip(CIFAR.rows, CELLS)]
ROWS += [Row(f"T 4000, cosine, L_{name}, 1.5M steps", {**CIFAR.row(f"T 4000, cosine, L_{name}").overrides,
                                                       "train.duration": "1500k steps"}, cells(*pair))
         for name, pair in LONG.items()]

TABLE = Table(
    title="Improved DDPM, Table 1: schedule and objective", source="Nichol & Dhariwal 2021, arXiv 2102.09672, Table 1",
    columns=CIFAR.columns, rows=ROWS, findings=[
        *CIFAR.findings,
        *[Finding(f"longer training helps {what}", column, [
            (f"T 4000, cosine, L_{name}, 1.5M steps", f"T 4000, cosine, L_{name}") for name in LONG])
          for what, column in (("samples", "FID"), ("likelihood", NLL))]],
    scales={"paper": paper({**CIFAR.scales["paper"].overrides, **IMAGENET}, about="As in the paper, but samples are of "
                           "1,000 steps in every row. A TFDS folder of ImageNet 64 is yours to make.")})
