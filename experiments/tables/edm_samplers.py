"""EDM (Karras et al. 2022), the sampler's ablation of Fig. 2: solver, time steps, schedule and scaling on one model.

There FID against network evaluations, as curves, of pre-trained VP, VE and ADM models; here of a model trained in EDM's
own way. Rows go from the VP sampler to EDM's, one change at a time, and on to the stochastic sampler (Fig. 4).
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

VP = {"sample.spacing": "vp", "sample.schedule": "vp", "sample.scaling": "vp"}
KINDS = {  # name -> what, and evaluations per step
    "VP sampler, Euler": ({"sample.solver": "euler", **VP}, 1),
    "VP sampler, Heun": ({"sample.solver": "heun", **VP}, 2),
    "Heun, EDM's time steps": ({"sample.solver": "heun", **VP, "sample.spacing": "karras"}, 2),
    "Heun, EDM's time steps, sigma = t": ({"sample.solver": "heun", "sample.spacing": "karras"}, 2),
    "the same, churn": ({"sample.solver": "heun", "sample.spacing": "karras", "sample.churn": 10.0,
                         "sample.churn_min": 0.05, "sample.churn_max": 50.0, "sample.churn_noise": 1.003}, 2),
}
EVALUATIONS = (8, 16, 36, 72)
CURVE = Cell(None, note="a curve")

TABLE = Table(
    title="EDM: solver, time steps, schedule, scaling", source="Karras et al. 2022, arXiv 2206.00364, Figs. 2 and 4",
    columns=[Column("FID", "fd")], x="sample.steps",
    rows=[Row(f"{name}, {n} evaluations", {**overrides, "sample.steps": n // each}, {"FID": CURVE})
          for name, (overrides, each) in KINDS.items() for n in EVALUATIONS],
    findings=[
        Finding(f"{text}, at equal evaluations", "FID", [(f"{better}, {n} evaluations", f"{worse}, {n} evaluations")
                                                         for n in EVALUATIONS[1:]])
        for text, better, worse in (
            ("Heun is better than Euler", "VP sampler, Heun", "VP sampler, Euler"),
            ("EDM's time steps are better", "Heun, EDM's time steps", "VP sampler, Heun"),
            ("sigma = t is better than the VP schedule", "Heun, EDM's time steps, sigma = t", "Heun, EDM's time steps"),
            ("EDM's sampler is better than the VP one", "Heun, EDM's time steps, sigma = t", "VP sampler, Euler"))],
    scales={
        "small": small({"process.name": "edm", "process.sigma_min": 0.002, "process.sigma_max": 80.0,
                        "prediction": "edm", "sigma_data": 0.5,
                        "loss.space": "x0", "loss.weighting": "edm", "loss.density": "log_normal",
                        "sample.spacing": "karras", "sample.solver": "heun", "sample.steps": 18, "sample.clip": False}),
        "mini": mini(config="configs/digits_edm.py", about="The model of configs/digits_edm.py.")})
