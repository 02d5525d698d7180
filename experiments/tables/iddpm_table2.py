"""Improved DDPM (Nichol & Dhariwal 2021), Table 2: schedule, length and objective. CIFAR-10, 500,000 iterations.

Their dropout is 0.1 under the linear schedule and 0.3 under the cosine one; Table 1 is in iddpm_table1.py.
"""
from experiments.proxies import mini, paper, small
from experiments.table import Cell, Column, Finding, Row, Table

NLL = "NLL, bits/dim"
SIMPLE = {"loss.name": "denoising", "loss.space": "eps", "loss.weighting": "simple"}
LEARNED = {"learned_range": True, "sample.variance": "learned_range", "likelihood.variance": "learned_range"}
HYBRID = {**SIMPLE, "loss.name": "hybrid", **LEARNED}
VLB = {"loss.name": "vlb", **LEARNED, "loss.density": "importance"}
T4000 = {"process.steps": 4000, "likelihood.steps": 4000}
LINEAR, COSINE = {"process.name": "linear"}, {"process.name": "cosine"}
# beta_1 and beta_T / 4, as their code scales the linear schedule with T.
LINEAR_4000 = {**LINEAR, **T4000, "process.beta_start": 2.5e-5, "process.beta_end": 0.005}
BASE = {"prediction": "eps", "process.rescale_times": True, "sample.solver": "ancestral", "sample.variance": "large",
        "likelihood.variance": "large"}
NETWORK = {"network.blocks": 3, "network.attention_resolutions": (16, 8), "network.heads": 4, "network.dropout": 0.3,
           "network.scale_shift": True, "network.pad_around": True, "network.norm_epsilon": 1e-5,
           "network.freq_shift": 0.0, "network.cos_first": True, "optimizer.learning_rate": 1e-4,
           "optimizer.warmup": "0 steps", "optimizer.clip_norm": 0.0, "data.flip": False,
           "train.duration": "500k steps"}


def cells(nll: float, fid: float) -> dict:
    return {NLL: Cell(nll, doubt="second hand"), "FID": Cell(fid, doubt="second hand")}


TABLE = Table(
    title="Improved DDPM, Table 2: schedule and objective", source="Nichol & Dhariwal 2021, arXiv 2102.09672, Table 2",
    columns=[Column("FID", "fd"), Column(NLL, "bits_per_dim")],
    rows=[
        Row("T 1000, linear, L_simple", {**LINEAR, **SIMPLE}, cells(3.73, 3.29)),
        Row("T 4000, linear, L_simple", {**LINEAR_4000, **SIMPLE}, cells(3.37, 2.90)),
        Row("T 4000, linear, L_hybrid", {**LINEAR_4000, **HYBRID}, cells(3.26, 3.07)),
        Row("T 4000, cosine, L_simple", {**COSINE, **T4000, **SIMPLE}, cells(3.26, 3.05)),
        Row("T 4000, cosine, L_hybrid", {**COSINE, **T4000, **HYBRID}, cells(3.17, 3.19)),
        Row("T 4000, cosine, L_vlb", {**COSINE, **T4000, **VLB}, cells(2.94, 11.47)),
    ],
    findings=[
        Finding("L_vlb has the best likelihood", NLL, [
            ("T 4000, cosine, L_vlb", "T 4000, cosine, L_hybrid"),
            ("T 4000, cosine, L_vlb", "T 4000, cosine, L_simple")]),
        Finding("L_vlb has the worst samples", "FID", [
            ("T 4000, cosine, L_hybrid", "T 4000, cosine, L_vlb"),
            ("T 4000, linear, L_hybrid", "T 4000, cosine, L_vlb")]),
        Finding("L_hybrid has a better likelihood than L_simple", NLL, [
            ("T 4000, cosine, L_hybrid", "T 4000, cosine, L_simple"),
            ("T 4000, linear, L_hybrid", "T 4000, linear, L_simple")]),
        Finding("the cosine schedule has a better likelihood than the linear one", NLL, [
            ("T 4000, cosine, L_simple", "T 4000, linear, L_simple"),
            ("T 4000, cosine, L_hybrid", "T 4000, linear, L_hybrid")]),
    ],
    scales={"paper": paper({**BASE, **NETWORK, "sample.steps": 1000}, about="As in the paper, but samples are of 1,000 "
                           "steps in every row.",
                           of_rows={name: {"network.dropout": 0.1} for name in (
                               "T 1000, linear, L_simple", "T 4000, linear, L_simple", "T 4000, linear, L_hybrid")}),
            "small": small({**BASE, "sample.steps": 250}, examples=256),
            "mini": mini({**BASE, "sample.steps": 250}, examples=32, about="Samples by 250 steps; likelihood of 32 "
                         "held-out images, the same for all rows, by all T.")})
