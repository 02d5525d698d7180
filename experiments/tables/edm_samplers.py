"""EDM (Karras et al. 2022), the sampler ablation of Fig. 2: solver, time steps, schedule and scaling on one model.

The paper has curves of FID against network evaluations for pre-trained VP, VE and ADM models; Table 3 has the VP
model's FID with the fewest evaluations within 3 % of the best. Here one model is trained in EDM's way. Rows go from the
VP sampler to EDM's, one change at a time. The paper makes the first two at once: it has no curve of Heun's method at
the VP sampler's times, and no finding about it.
"""
from experiments.proxies import mini, small
from experiments.table import Cell, Column, Finding, Row, Table

EDM = {"process.name": "edm", "process.sigma_min": 0.002, "process.sigma_max": 80.0, "prediction": "edm",
       "sigma_data": 0.5, "loss.space": "x0", "loss.weighting": "edm", "loss.density": "log_normal",
       "sample.spacing": "karras", "sample.solver": "heun", "sample.steps": 18, "sample.clip": False}
ALONG_VP = {"sample.schedule": "vp", "sample.scaling": "vp"}
# Its times end at t = 1e-3 of VP's betas, 0.1 and 20; EDM's end at the model's 0.002 (generate.py, sigma_min).
VP = {**ALONG_VP, "sample.spacing": "vp", "sample.sigma_min": 0.010486}
EULER, HEUN = {"sample.solver": "euler"}, {"sample.solver": "heun"}
KARRAS = {"sample.spacing": "karras"}
KINDS = {  # name -> overrides, and Table 3's evaluations and FID
    "VP sampler, Euler": ({**EULER, **VP}, (512, 2.79)),
    "VP sampler, Heun": ({**HEUN, **VP}, None),
    "Heun, EDM's time steps": ({**HEUN, **ALONG_VP, **KARRAS}, (255, 2.88)),
    "Heun, EDM's time steps, sigma = t": ({**HEUN, **KARRAS}, (35, 2.93)),
}
EVALUATIONS = (7, 17, 35, 71)
LONG = [f"{name}, {there[0]} evaluations" for name, (_, there) in KINDS.items() if there and there[0] > 71]


def row(name: str, evaluations: int) -> Row:
    """A row of a kind. Heun's method takes two evaluations per step, and one for the last."""
    overrides, there = KINDS[name]
    steps = evaluations if overrides["sample.solver"] == "euler" else (evaluations + 1) // 2
    cell = (Cell(None, note="not in the paper") if there is None else
            Cell(there[1], doubt="second hand") if there[0] == evaluations else Cell(None, note="a curve"))
    return Row(f"{name}, {evaluations} evaluations", {**overrides, "sample.steps": steps}, {"FID": cell})


TABLE = Table(
    title="EDM: solver, time steps, schedule, scaling",
    source="Karras et al. 2022, arXiv 2206.00364, Fig. 2 and Table 3 (CIFAR-10, the VP model)",
    columns=[Column("FID", "fd")], x="evaluations",
    rows=[row(name, n) for name, (_, there) in KINDS.items() for n in sorted({*EVALUATIONS, *(there or ())[:1]})],
    findings=[
        Finding(f"{text}, at equal evaluations", "FID", [(f"{better}, {n} evaluations", f"{worse}, {n} evaluations")
                                                         for n in EVALUATIONS])
        for text, better, worse in (
            ("(not the paper's) Heun is better than Euler", "VP sampler, Heun", "VP sampler, Euler"),
            ("(not the paper's) EDM's time steps are better", "Heun, EDM's time steps", "VP sampler, Heun"),
            ("Heun with EDM's time steps is better than the VP sampler", "Heun, EDM's time steps", "VP sampler, Euler"),
            ("sigma = t is better than the VP schedule", "Heun, EDM's time steps, sigma = t", "Heun, EDM's time steps"),
            ("EDM's sampler is better than the VP one", "Heun, EDM's time steps, sigma = t", "VP sampler, Euler"))],
    scales={"small": small(EDM), "mini": mini(config="configs/digits_edm.py", leaves_out=LONG,
                                              about="The model of configs/digits_edm.py.")})
