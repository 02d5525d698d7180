"""DDIM (Song, Meng & Ermon 2021), Table 1: steps and noise of the sampler, on one model. CIFAR-10.

At the paper's scale times and clipping follow the authors: CIFAR-10's times are quadratic (Appendix D.2), 0 .. 0.8 T
in their code (ermongroup/ddim e8df66c, runners/diffusion.py, sample_image), and only the chain of the large variance
clips (functions/denoising.py). Repeated times, whose steps change nothing, occur only once here. 1,000 steps are all T.
"""
import numpy as np

from experiments.proxies import mini, paper, small
from experiments.table import Column, Finding, Row, Table

STEPS = (10, 20, 50, 100, 1000)
FID = {  # eta, or the large variance -> FID by steps
    "eta 0": (13.36, 6.84, 4.67, 4.16, 4.04),
    "eta 0.2": (14.04, 7.11, 4.77, 4.25, 4.09),
    "eta 0.5": (16.66, 8.35, 5.25, 4.46, 4.29),
    "eta 1": (41.07, 18.36, 8.01, 5.78, 4.73),
    "large variance": (367.43, 133.37, 32.72, 9.99, 3.17),
}
MODEL = {"process.name": "linear", "prediction": "eps", "loss.space": "eps", "loss.weighting": "simple",
         "sample.clip": True}


def sampler(name: str, steps: int) -> dict:
    if name == "large variance":
        return {"sample.solver": "ancestral", "sample.variance": "large", "sample.steps": steps}
    return {"sample.solver": "ddim", "sample.eta": float(name.split()[1]), "sample.steps": steps}


def quadratic(steps: int, t_max: int = 1000) -> tuple[int, ...]:
    """The decreasing times of CIFAR-10: the authors' times and one more."""
    return tuple(1 + int(t) for t in np.unique((np.linspace(0, np.sqrt(0.8 * t_max), steps)**2).astype(int))[::-1])


def as_published(name: str, steps: int) -> dict:
    times = quadratic(steps) if steps < 1000 else tuple(range(1000, 0, -1))
    return {"sample.spacing": "times", "sample.given": times, "sample.steps": len(times),
            "sample.clip": name == "large variance"}


TABLE = Table(
    title="DDIM, Table 1: steps and eta", source="Song et al. 2021, arXiv 2010.02502, Table 1 (CIFAR-10)",
    columns=[Column("FID", "fd")], x="evaluations",
    rows=[Row(f"{name}, {steps} steps", sampler(name, steps), {"FID": fid})
          for name, fids in FID.items() for steps, fid in zip(STEPS, fids)],
    findings=[
        Finding("with few steps, the less noise the better", "FID", [
            (f"{a}, {steps} steps", f"{b}, {steps} steps") for steps in (10, 20)
            for a, b in (("eta 0", "eta 0.5"), ("eta 0.5", "eta 1"), ("eta 1", "large variance"))]),
        Finding("more steps are better for every sampler", "FID", [
            (f"{name}, 100 steps", f"{name}, 10 steps") for name in FID]),
    ],
    scales={"paper": paper(MODEL, of_rows={f"{name}, {steps} steps": as_published(name, steps)
                                           for name in FID for steps in STEPS}),
            "small": small(MODEL),
            "mini": mini(MODEL, leaves_out=[f"{name}, 1000 steps" for name in FID],
                         about="Without the rows of 1,000 steps.")})
