"""Progressive distillation (Salimans & Ho 2022), Table 1: prediction and weighting of the teacher. CIFAR-10.

Each model is sampled by the ancestral chain ("stochastic") and by DDIM. In the paper eps with the truncated
SNR diverges. The paper's network, schedule and training follow the authors' config/cifar_base.py (google-research,
diffusion_distillation); at smaller scales the schedule is Improved DDPM's table of 1,000 steps.
"""
from experiments.proxies import mini, paper, small
from experiments.table import Cell, Column, Finding, Row, Table

PREDICTIONS = {"(x, eps)": "x0_and_eps", "x": "x0", "eps": "eps", "v": "v"}
WEIGHTINGS = {"SNR": "snr", "truncated SNR": "truncated_snr", "SNR + 1": "snr_plus_one"}
CELLS = {  # (FID, IS) of the stochastic sampler, and of DDIM
    ("(x, eps)", "SNR"): ((2.54, 9.88), (2.78, 9.56)), ("(x, eps)", "truncated SNR"): ((2.47, 9.85), (2.76, 9.49)),
    ("(x, eps)", "SNR + 1"): ((2.52, 9.79), (2.87, 9.45)), ("x", "SNR"): ((2.65, 9.80), (2.75, 9.56)),
    ("x", "truncated SNR"): ((2.53, 9.92), (2.51, 9.58)), ("x", "SNR + 1"): ((2.56, 9.84), (2.65, 9.52)),
    ("eps", "SNR"): ((2.59, 9.84), (2.91, 9.52)),
    ("eps", "truncated SNR"): (None, None), ("eps", "SNR + 1"): ((2.56, 9.77), (3.27, 9.41)),
    ("v", "SNR"): ((2.65, 9.86), (3.05, 9.56)), ("v", "truncated SNR"): ((2.45, 9.80), (2.75, 9.52)),
    ("v", "SNR + 1"): ((2.49, 9.77), (2.87, 9.43)),
}
SAMPLERS = {"stochastic": {"sample.solver": "ancestral", "sample.variance": "large"},
            "DDIM": {"sample.solver": "ddim", "sample.eta": 0.0}}
MODEL = {"process.name": "cosine", "loss.name": "denoising", "loss.space": "eps"}
PAPER = {**MODEL, "process.name": "shifted_cosine", "process.shift": 1.0, "process.log_snr_min": -20.0,
         "process.log_snr_max": 20.0, "sample.spacing": "uniform", "sample.t_min": 1 / 1024, "sample.steps": 1024,
         "sample.clip": True, "network.channels": 256, "network.multipliers": (1, 1, 1), "network.blocks": 3,
         "network.attention_resolutions": (16, 8), "network.dropout": 0.2, "network.scale_shift": True,
         "network.downsample": ("resblock",), "network.upsample": ("resblock",), "optimizer.warmup": "1000 steps",
         "train.duration": "2000k steps"}
DIVERGES = Cell(None, note="N/A: diverges")
ROWS = [(prediction, weighting, sampler, cells)
        for (prediction, weighting), both in CELLS.items() for sampler, cells in zip(SAMPLERS, both)]


def name(prediction: str, weighting: str, sampler: str) -> str:
    return f"{prediction}, {weighting}, {sampler}"


TABLE = Table(
    title="Progressive distillation, Table 1: prediction and weighting",
    source="Salimans & Ho 2022, arXiv 2202.00512, Table 1 (3 seeds, +- 0.1)",
    columns=[Column("FID", "fd"), Column("IS", "score", lower_is_better=False)],
    rows=[Row(name(prediction, weighting, sampler), {"prediction": PREDICTIONS[prediction],
                                                     "loss.weighting": WEIGHTINGS[weighting], **SAMPLERS[sampler]},
              {"FID": Cell(cells[0], 0.1), "IS": cells[1]} if cells else {"FID": DIVERGES, "IS": DIVERGES})
          for prediction, weighting, sampler, cells in ROWS],
    findings=[
        Finding("x by the truncated SNR is best by DDIM", "FID", [
            (name("x", "truncated SNR", "DDIM"), name(prediction, weighting, "DDIM"))
            for (prediction, weighting), cells in CELLS.items()
            if cells[0] and (prediction, weighting) != ("x", "truncated SNR")]),
        Finding("eps by SNR + 1 is worst by DDIM", "FID", [
            (name(prediction, "SNR + 1", "DDIM"), name("eps", "SNR + 1", "DDIM"))
            for prediction in ("(x, eps)", "x", "v")]),
    ],
    scales={"paper": paper(PAPER, about="The paper's widths in our U-Net, without its weight decay of 0.001, after 2M "
                           "steps; there the best along the way."),
            "small": small({**MODEL, "sample.steps": 250}),
            "mini": mini({**MODEL, "sample.steps": 100},
                         leaves_out=[name(*row[:3]) for row in ROWS if row[2] == "stochastic"],
                         about="By DDIM of 100 steps alone.")})
