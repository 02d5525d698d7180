"""Each method of docs/methods.md, each config and each table has its paper's numbers, with the source of each.

A source is a file of the authors' code at a commit, or a place in a paper; "second hand" means as others quote it,
"recalled" from memory and not checked.
"""
import functools
import importlib

import numpy as np
import pytest
from test_docs import ROOT, methods

from diffusion import build
from diffusion import config as config_lib
from diffusion.build import advice
from diffusion.build.kinds import clips
from diffusion.build.sampling import sampling_process
from diffusion.core import time_densities
from diffusion.families import BY_NAME
from experiments import table

HO = "hojonathanho/diffusion 1e0dceb, scripts/run_cifar.py"
DDIM = "ermongroup/ddim e8df66c, configs/cifar10.yml and functions/denoising.py"
IDDPM = "openai/improved-diffusion 1bc7bbb, README.md (CIFAR-10 flags), script_util.py, gaussian_diffusion.py"
SDE = "yang-song/score_sde 0acb9e0, configs/default_cifar10_configs.py, losses.py (eps), run_lib.py (sampling_eps)"
SDE_TWICE = f"{SDE}: 0.01 and 50 for data in [0, 1] (centered False); for [-1, 1] NVlabs/edm 008a4e5, loss.py, VELoss"
VDM = "google-research/vdm dc27b98, configs/cifar10.py, model_vdm.py, experiment_vdm.py (T)"
PD = "google-research/google-research, diffusion_distillation/config/cifar_base.py"
P2 = "jychoi118/P2-weighting 3da0947, README.md"
EDM = "NVlabs/edm 008a4e5, training/loss.py, generate.py, README.md"
EDM2 = "NVlabs/edm2 4bf8162, train_edm2.py, generate_images.py"
MIN_SNR = "TiankaiHang/Min-SNR-Diffusion-Training 5189997, configs/in256, scripts/sampler_edm.py"
SIMPLE = "second hand: Hoogeboom et al. 2023, appendix, as lucidrains/denoising-diffusion-pytorch and others have it"
JIT = "LTH14/JiT cbc743a, README.md, main_jit.py, denoiser.py, model_jit.py; P_mean -0.8 there, where time runs the " \
      "other way"
SIT = "willisma/SiT 947f95b, train.py, models.py, transport"
LDM = "CompVis/stable-diffusion 21f890f, configs/stable-diffusion/v1-inference.yaml"
FLOW = "gnobitab/RectifiedFlow 5a1fd4d, ImageGeneration/sde_lib.py, losses.py (eps), configs/rectified_flow"
SD3 = "Stability-AI/sd3-ref 883b836, sd3_infer.py"
DIT = "facebookresearch/DiT ed81ce2, train.py, sample.py"
DIFFWAVE = "albertfgu/diffwave-sashimi d35c153, configs/model/wavenet.yaml, configs/config.yaml, dataset/sc09.yaml, " \
           "experiment/sc09.yaml, train.py, generate.py"
ADM = "Dhariwal & Nichol 2021, Appendix I; openai/guided-diffusion 22e0df8, README.md"
RECALLED = "recalled"

LINEAR = {"process.name": "linear", "process.steps": 1000, "process.beta_start": 1e-4, "process.beta_end": 0.02}
COSINE = {"process.name": "cosine", "process.steps": 4000, "process.offset": 0.008, "process.max_beta": 0.999,
          "process.rescale_times": True, "learned_range": True, "sample.variance": "learned_range",
          "sample.steps": 4000, "sample.clip": True}
VP = {"process.beta_min": 0.1, "process.beta_max": 20.0, "process.t_min": 1e-5}
VE = {"process.sigma_min": 0.02, "process.sigma_max": 100.0}
EDM_PROCESS = {"process.sigma_min": 0.002, "process.sigma_max": 80.0, "sigma_data": 0.5}
OF_EDM = {**EDM_PROCESS, "sample.rho": 7.0}
LOG_NORMAL = {"loss.density": "log_normal", "loss.density_mean": -1.2, "loss.density_std": 1.2}
TWENTY = {"process.log_snr_min": -20.0, "process.log_snr_max": 20.0}
OF_VDM = {"process.log_snr_min": -5.0, "process.log_snr_max": 13.3, "loss.stratified": True,
          "sample.variance": "small", "sample.clip": False}

# The row's name begins so: [(source, keys and values)]. Each number of the row is among them.
METHODS = {
    "DDPM": [(HO, {**LINEAR, "sample.variance": "large", "sample.steps": 1000, "sample.clip": True})],
    "DDIM": [(DDIM, {**LINEAR, "loss.weighting": "simple", "sample.eta": 0.0, "sample.spacing": "leading",
                     "sample.clip": False}),
             ("Song et al. 2021a, Table 1: 50 of 10 .. 1,000", {"sample.steps": 50})],
    "Improved DDPM, L_hybrid": [(IDDPM, {**COSINE, "loss.hybrid_scale": 1e-3})],
    "Improved DDPM, L_vlb": [(IDDPM, {**COSINE, "loss.density": "importance"})],
    "Score SDE, VP": [(SDE, {**VP, "sample.t_min": 1e-3, "sample.steps": 1000, "sample.clip": False})],
    "Score SDE, sub-VP": [(SDE, {**VP, "sample.t_min": 1e-3, "sample.tolerance": 1e-5, "sample.clip": False}),
                          ("of this code: the ends of the path", {"sample.steps": 2})],
    "Score SDE, VE": [(SDE_TWICE, VE), (SDE, {"process.t_min": 1e-5, "sample.t_min": 1e-5, "sample.steps": 1000,
                                              "sample.corrector_snr": 0.16, "sample.corrector_steps": 1,
                                              "sample.clip": False})],
    "VDM (": [(VDM, {**OF_VDM, "process.hidden": 1024, "sample.steps": 1000, "sample.t_min": 1e-3})],
    "Progressive": [(PD, {**TWENTY, "process.shift": 1.0, "prediction": "x0", "loss.weighting": "truncated_snr",
                          "sample.steps": 1024, "sample.t_min": 1 / 1024, "sample.eta": 0.0, "sample.clip": True})],
    "P2": [(P2, {**LINEAR, "loss.p2_k": 1.0, "loss.p2_gamma": 1.0, "learned_range": True, "loss.name": "hybrid",
                 "loss.hybrid_scale": 1e-3, "sample.steps": 250, "sample.clip": True})],
    "EDM (": [(EDM, {**OF_EDM, **LOG_NORMAL, "sample.steps": 18, "sample.churn": 0.0, "sample.clip": False})],
    "EDM's Table 1, column VP": [(EDM, {**VP, "sample.solver": "euler", "sample.steps": 512, "sample.clip": False})],
    "simple diffusion": [(SIMPLE, {"process.shift": 64 / 128, "process.log_snr_min": -15.0,
                                   "process.log_snr_max": 15.0, "sample.variance": "mixed",
                                   "sample.variance_share": 0.2}),
                         (RECALLED, {"sample.steps": 512, "sample.t_min": 1 / 512, "sample.clip": True})],
    "Min-SNR": [(MIN_SNR, {"process.name": "cosine", "process.steps": 1000, "prediction": "x0", "loss.gamma": 5.0,
                           "sample.steps": 50, "sample.rho": 7.0, "sample.sigma_max": 80.0, "sample.clip": False})],
    "VDM++": [(RECALLED, {**TWENTY, "process.shift": 1.0, "loss.bias": 2.0})],
    "zero terminal SNR": [(LDM, {"process.name": "scaled_linear", "process.steps": 1000,
                                 "process.beta_start": 0.00085, "process.beta_end": 0.012}),
                          ("Lin et al. 2024, Sections 3.1 to 3.3", {"sample.spacing": "trailing", "prediction": "v"}),
                          (RECALLED, {"sample.steps": 50, "sample.eta": 0.0, "sample.clip": False})],
    "flow matching": [(FLOW, {"process.shift": 1.0, "process.t_min": 1e-3, "sample.tolerance": 1e-5}),
                      ("of this code: the ends of the path", {"sample.steps": 2})],
    "the times of Stable Diffusion 3": [(SD3, {"process.shift": 3.0, "sample.steps": 50}),
                                        (RECALLED, {"loss.density_mean": 0.0, "loss.density_std": 1.0})],
    "EDM2": [(EDM2, {**OF_EDM, "loss.density": "log_normal", "loss.density_mean": -0.4, "loss.density_std": 1.0,
                     "sample.steps": 32, "sample.clip": False})],
    "Laplace": [(RECALLED, {"process.log_snr_mean": 0.0, "process.log_snr_scale": 0.5, "sample.eta": 0.0})],
    "x0 with the loss in velocity": [(JIT, {"loss.density_mean": 0.8, "loss.density_std": 0.8, "sample.steps": 50,
                                            "process.shift": 1.0, "loss.least_sigma": 0.05, "sample.t_min": 1 / 50,
                                            "sample.least_noise": 0.05})],
}
NO_PAPERS = {"cifar10_minutes", "cifar10_tiny", "digits", "digits_dit", "digits_guided", "fashion_mnist", "folder",
             "fsdd", "mnist", "moving_mnist", "moving_mnist_vdm", "recordings", "toy_2d"}
CONFIGS = {
    "cifar10": [(HO, {**LINEAR, "loss.weighting": "simple", "loss.space": "eps", "sample.variance": "large",
                      "sample.steps": 1000, "network.dropout": 0.1, "optimizer.learning_rate": 2e-4,
                      "optimizer.warmup": "5000 steps", "optimizer.clip_norm": 1.0, "train.batch_size": 128,
                      "data.flip": True})],
    "dit": [(DIT, {**LINEAR, "learned_range": True, "loss.name": "hybrid", "loss.hybrid_scale": 1e-3,
                       "sample.steps": 250, "sample.clip": False, "network.label_dropout": 0.1,
                       "optimizer.learning_rate": 1e-4, "optimizer.clip_norm": 0.0, "train.batch_size": 256})],
    "sit": [(SIT, {"process.name": "flow", "process.network_time": "data", "prediction": "velocity",
                   "loss.space": "velocity", "loss.weighting": "simple", "loss.density": "uniform",
                   "network.unread_outputs": True, "network.label_dropout": 0.1, "optimizer.learning_rate": 1e-4,
                   "optimizer.warmup": "0 steps", "optimizer.clip_norm": 0.0, "ema.half_life": "1774368 images",
                   "train.batch_size": 256, "sample.clip": False})],
    "jit": [(JIT, {"process.name": "flow", "process.noise_scale": 1.0, "process.network_time": "data",
                   "prediction": "x0", "loss.space": "velocity", "loss.weighting": "clipped_velocity",
                   "loss.least_sigma": 0.05, "loss.density": "logit_normal", "loss.density_mean": 0.8,
                   "loss.density_std": 0.8, "network.bottleneck": 128, "network.class_tokens": 32,
                   "network.class_tokens_from": 4, "network.label_dropout": 0.1, "optimizer.name": "adam",
                   "optimizer.beta1": 0.9, "optimizer.beta2": 0.95, "optimizer.learning_rate": 2e-4,
                   "optimizer.warmup": "5 epochs", "optimizer.clip_norm": 0.0, "ema.half_life": "7097472 images",
                   "train.batch_size": 1024, "train.duration": "600 epochs", "data.crop": "adm", "data.flip": True,
                   "sample.solver": "heun", "sample.spacing": "uniform", "sample.steps": 50, "sample.least_noise": 0.05,
                   "sample.clip": False, "sample.guidance.scale": 3.0})],
    "sc09_diffwave": [(DIFFWAVE, {
        "process.name": "linear", "process.steps": 200, "process.beta_start": 1e-4, "process.beta_end": 0.02,
        "prediction": "eps", "loss.space": "eps", "loss.weighting": "simple", "data.length": 16_000,
        "data.rate": 16_000, "network.channels": 256, "network.depth": 36, "network.dilation_cycle": 12,
        "network.weight_norm": True, "optimizer.name": "adam", "optimizer.learning_rate": 2e-4,
        "optimizer.warmup": "0 steps", "optimizer.clip_norm": 0.0, "train.batch_size": 16,
        "sample.variance": "small", "sample.steps": 200, "sample.clip": False})],
    "imagenet64_adm": [(ADM, {"process.name": "cosine", "process.steps": 1000, "process.rescale_times": False,
                              "loss.name": "hybrid", "loss.hybrid_scale": 1e-3, "sample.steps": 250,
                              "sample.clip": True, "network.dropout": 0.1, "optimizer.learning_rate": 3e-4,
                              "train.batch_size": 2048, "train.duration": "540k steps"})],
    "edm": [(f"{EDM}, train.py, training_loop.py", {
        **LOG_NORMAL, **OF_EDM, "network.channels": 128, "network.multipliers": (2, 2, 2), "network.blocks": 4,
        "network.attention_resolutions": (16,), "network.dropout": 0.13, "data.augment": 0.12, "data.flip": False,
        "loss.weighting": "edm", "loss.space": "x0", "optimizer.learning_rate": 1e-3, "optimizer.beta2": 0.999,
        "optimizer.warmup": "10M images", "optimizer.clip_norm": 0.0, "ema.half_life": "500k images",
        "ema.warmup_ratio": 0.05, "train.batch_size": 512, "train.duration": "200M images", "sample.steps": 18,
        "sample.churn": 0.0, "sample.clip": False})],
    "score_sde": [(SDE_TWICE, VE), (f"{SDE}, configs/ve/cifar10_ncsnpp_continuous.py, models/ncsnpp.py", {
        "process.t_min": 1e-5, "network.channels": 128, "network.multipliers": (1, 2, 2, 2), "network.blocks": 4,
        "network.attention_resolutions": (16,), "network.dropout": 0.1, "network.resample_filter": (1, 3, 3, 1),
        "data.flip": True, "loss.weighting": "simple", "loss.space": "eps", "optimizer.learning_rate": 2e-4,
        "optimizer.warmup": "5000 steps", "optimizer.clip_norm": 2 / 3072, "train.batch_size": 128,
        "train.duration": "1300k steps", "sample.steps": 1000, "sample.corrector_snr": 0.16,
        "sample.corrector_steps": 1, "sample.clip": False})],
    "edm2": [(EDM2, {**OF_EDM, "data.crop": "adm", "loss.density": "log_normal", "loss.density_mean": -0.8,
                     "loss.density_std": 1.6, "sample.steps": 32, "sample.clip": False, "network.channels": 192,
                     "optimizer.learning_rate": 100e-4, "optimizer.decay": "inverse_sqrt", "optimizer.beta2": 0.99,
                     "optimizer.warmup": "10M images", "optimizer.decay_from": "35k steps", "ema.sigma_rel": 0.05,
                     "train.batch_size": 2048, "train.duration": "524288 steps",
                     "train.snapshot_every": "4096 steps"})],
    "digits_edm": [(EDM, {**LOG_NORMAL, "process.sigma_min": 0.002, "process.sigma_max": 80.0, "sample.rho": 7.0,
                          "sample.steps": 18, "sample.clip": False}),
                   ("of the digits: their standard deviation", {"sigma_data": 0.75})],
    "digits_flow": [(RECALLED, {"loss.density_mean": 0.0, "loss.density_std": 1.0}),
                    (FLOW, {"process.shift": 1.0, "process.t_min": 1e-3})],
    "digits_iddpm": [(IDDPM, {"process.offset": 0.008, "process.max_beta": 0.999, "loss.hybrid_scale": 1e-3})],
    "digits_score_sde": [(SDE_TWICE, VE), (SDE, {"process.t_min": 1e-5, "sample.corrector_snr": 0.16,
                                                 "sample.clip": False})],
    "digits_vdm": [(VDM, {**OF_VDM, "sample.t_min": 1 / 250, "sample.steps": 250})],
}
# table: [(source, the scales, what the rows' names begin with, keys and values)]
TABLES = {
    "cfg_table1": [("Ho & Salimans 2022, Section 4", "paper small mini", "", {"network.label_dropout": 0.1})],
    "ddim_table1": [(DDIM, "paper small mini", "", LINEAR), (DDIM, "paper", "eta", {"sample.clip": False}),
                    (DDIM, "paper", "large", {"sample.clip": True, "sample.variance": "large"})],
    "ddpm_table1": [(HO, "paper small mini", "", {**LINEAR, "sample.variance": "large"}),
                    (HO, "paper small mini", "L, ", {"loss.variance": "large"}),
                    (HO, "paper", "", {"sample.steps": 1000, "train.duration": "800k steps"})],
    "ddpm_table2": [(HO, "paper small mini", "", LINEAR), (HO, "paper", "", {"sample.steps": 1000})],
    "dit_sizes": [(DIT, "mini", "XL/2", {"network.patch": 2, "network.mlp_ratio": 4.0})],
    "jit_table2": [(JIT, "paper", "v-loss, x", {"loss.least_sigma": 0.05, "loss.density_mean": 0.8,
                                                "sample.least_noise": 0.05, "sample.steps": 50,
                                                "train.duration": "200 epochs", "network.bottleneck": 0}),
                   ("willisma/SiT 947f95b, transport: eps of sampling and training", "paper mini", "x-loss, eps", {
                       "process.t_max": 0.999})],
    "jit_table4": [(JIT, "paper", "+ in-context", {"network.class_tokens": 32, "network.class_tokens_from": 4}),
                   (JIT, "paper", "", {"network.bottleneck": 128, "sample.guidance.interval_high": 8.99,
                                       "train.duration": "200 epochs"})],
    "edm_samplers": [(EDM, "small", "", EDM_PROCESS), (EDM, "small", "Heun, EDM's", OF_EDM),
                     (EDM, "small mini", "", {**LOG_NORMAL, "sample.clip": False}),
                     (f"{EDM}: sigma at t = 1e-3", "small mini", "VP sampler", {"sample.sigma_min": 0.010486})],
    "edm_stochastic": [("Karras et al. 2022, Table 5, CIFAR-10, VP", "small mini", "all", {
        "sample.churn": 30.0, "sample.churn_min": 0.01, "sample.churn_max": 1.0, "sample.churn_noise": 1.007})],
    "edm_table2": [(EDM, "small mini", "C, VP", VP), (EDM, "small mini", "D, VP", VP),
                   (SDE_TWICE, "small mini", "C, VE", VE), (SDE_TWICE, "small mini", "D, VE", VE),
                   (EDM, "small mini", "E", LOG_NORMAL),
                   (EDM, "small mini", "", {"sample.sigma_min": 0.002, "sample.sigma_max": 80.0, "sample.steps": 18})],
    "flow_matching_table1": [(RECALLED, "paper small mini", "DDPM", VP),
                             (RECALLED, "paper", "", {"sample.tolerance": 1e-5, "likelihood.samples": 50})],
    "iddpm_table1": [(IDDPM, "paper", "T 4000, cosine", {"process.steps": 4000, "process.rescale_times": True,
                                                         "network.dropout": 0.0, "optimizer.learning_rate": 1e-4})],
    "iddpm_table2": [
        (f"{IDDPM}: scale = 1000 / T", "paper small mini", "T 4000, linear", {
            "process.steps": 4000, "process.beta_start": 1e-4 / 4, "process.beta_end": 0.02 / 4}),
        (IDDPM, "paper small mini", "T 4000, cosine", {"process.steps": 4000, "process.rescale_times": True}),
        (IDDPM, "paper", "T 4000, cosine", {"network.dropout": 0.3, "optimizer.learning_rate": 1e-4, "data.flip": False,
                                            "optimizer.clip_norm": 0.0, "train.batch_size": 128})],
    "min_snr": [(MIN_SNR, "small mini", "", {"process.name": "cosine", "process.steps": 1000}),
                *((MIN_SNR, "small mini", f"{prediction}, Min", {"loss.gamma": 5.0})
                  for prediction in ("x", "eps", "v"))],
    "p2": [(P2, "small mini", "", LINEAR),
           (P2, "small mini", "P2, gamma 0.5", {"loss.p2_k": 1.0, "loss.p2_gamma": 0.5})],
    "progressive_distillation_table1": [(PD, "paper", "", {
        **TWENTY, "process.name": "shifted_cosine", "sample.steps": 1024, "sample.t_min": 1 / 1024,
        "sample.clip": True, "network.dropout": 0.2, "network.channels": 256, "optimizer.learning_rate": 2e-4,
        "train.batch_size": 128})],
    "score_sde_table1": [(SDE_TWICE, "small mini", "VE", VE), (SDE, "small mini", "VP", {**VP, "sample.t_min": 1e-3}),
                         (SDE, "small mini", "", {"sample.clip": False}),
                         ("Song et al. 2021b, Table 5", "small mini", "VP, probability flow, PC", {
                             "sample.corrector_snr": 0.04})],
    "vdm_schedules": [(VDM, "small mini", "", OF_VDM)],
}


def differing(config, expected) -> dict:
    """The keys that differ from a source: key -> (ours, theirs, source)."""
    ours = config_lib.keys(config)
    ours["sample.clip"] = clips(config)  # None follows the data
    return {key: (ours.get(key), value, source) for source, values in expected for key, value in values.items()
            if ours.get(key) != value}


def test_each_method_has_its_papers_constants():
    digits = importlib.import_module("configs.digits").get_config()
    for name, keys in methods().items():
        (expected,) = [groups for begins, groups in METHODS.items() if name.startswith(begins)]
        assert not differing(config_lib.override(digits, keys), expected), name
        numbers = {key for key, value in keys.items() if isinstance(value, int | float) and not isinstance(value, bool)}
        assert numbers <= {key for _, values in expected for key in values}, name
    assert len(METHODS) == len(methods())


def test_each_config_has_its_papers_constants():
    names = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert names == NO_PAPERS | set(CONFIGS)
    for name, expected in CONFIGS.items():
        config = importlib.import_module(f"configs.{name}").get_config()
        assert not differing(config, expected), name


def test_each_table_has_its_papers_constants():
    assert set(table.names()) == set(TABLES)
    for name, groups in TABLES.items():
        found = table.find(name)
        config = functools.cache(lambda scale, row, found=found: found.config(scale, found.row(row)))
        for source, scales, begins, values in groups:
            for scale in scales.split():
                rows = [row for row in found.rows if row.name.startswith(begins)]
                assert rows, (name, begins)
                for row in rows:
                    assert not differing(config(scale, row.name), [(source, values)]), (name, scale, row.name)


@pytest.mark.parametrize("key, name, value", [
    ("process.sigma_min", "edm", 0.002), ("process.sigma_max", "edm", 80.0), ("process.sigma_min", "ve", 0.02),
    ("process.sigma_max", "ve", 100.0), ("process.log_snr_min", "shifted_cosine", -20.0),
    ("process.log_snr_max", "shifted_cosine", 20.0), ("process.log_snr_min", "learned", -5.0),
    ("process.log_snr_max", "learned", 13.3), ("process.t_min", "vp", 1e-5), ("process.t_min", "sub_vp", 1e-5),
    ("process.t_min", "ve", 1e-5), ("process.t_min", "flow", 1e-3), ("process.t_min", "laplace", 1e-3)])
def test_a_process_has_its_own_defaults(key, name, value):
    """By the config, and by its class."""
    assert config_lib.keys(config_lib.base(process=name))[key] == value
    if name != "learned":
        process = build.process(config_lib.base(process=name).process)
        assert getattr(process, key.split(".")[1], value) == value and process == type(process)()
    assert config_lib.keys(config_lib.override(config_lib.base(process=name), {key: 0.5}))[key] == 0.5


def test_a_weighting_and_a_density_have_their_own_defaults():
    for name, keys in (("min_snr", {"gamma": 5.0}), ("soft_min_snr", {"gamma": 4.0}), ("sigmoid", {"bias": 2.0}),
                       ("p2", {"p2_k": 1.0, "p2_gamma": 1.0}), ("clipped_velocity", {"least_sigma": 0.05})):
        assert BY_NAME["weighting"].bound(config_lib.base(weighting=name).loss).keywords == keys
    for name, own in (("log_normal", time_densities.LogNormal()), ("logit_normal", time_densities.LogitNormal()),
                      ("mode", time_densities.Mode())):
        assert BY_NAME["density"].make(config_lib.base(density=name).loss) == own


def along_of(**keys):
    c = config_lib.override(config_lib.base(), {key.replace("__", "."): value for key, value in keys.items()})
    return c, sampling_process(c.sample, build.process(c.process))


def test_edms_vp_column_is_its_authors_schedule():
    """generate.py: beta_d = 19.9 and beta_min = 0.1, from the noise level at t = epsilon_s = 1e-3 to t = 1."""
    c, target = along_of(process__name="vp", sample__schedule="vp", sample__scaling="vp", sample__spacing="uniform")
    assert target.betas() == pytest.approx((19.9, 0.1))
    assert (target.sigma_min, target.sigma_max) == pytest.approx((0.010486, 152.167), rel=1e-4)
    assert build.grid(c.sample, build.process(c.process))[-1, 0] == pytest.approx(1e-3)


@pytest.mark.parametrize("name, low, high", [("ve", 0.02, 100.0), ("vp", 1.0005e-3, 152.17), ("edm", 0.002, 80.0),
                                             ("linear", 0.0100005, 157.4)])
def test_noise_levels_outside_the_models_are_its_ends_and_said(name, low, high):
    """As in EDM's code, generate.py: max(sigma_min, net.sigma_min). VE's own lower end is not NaN."""
    keys = {"process__name": name, "sample__between_times": True, "sample__spacing": "karras", "sample__steps": 5,
            "sample__schedule": "linear"}
    for sigma_min, sigma_max, notes in ((low / 10, 10 * high, 2), (low, high / 2, 0), (low / 10, high / 2, 1)):
        c, target = along_of(**keys, sample__sigma_min=sigma_min * 1.001, sample__sigma_max=sigma_max)
        assert target.sigma_min == pytest.approx(low, rel=2e-3)
        assert target.sigma_max == pytest.approx(min(sigma_max, high), rel=1e-3)
        process = build.process(c.process)
        times = process.time_of_log_snr(target.log_snr(build.grid(c.sample, process)[:, 0]))
        assert np.isfinite(times).all() and (np.diff(times) < 0).all() and times[-1] > 0
        found = [note for note in advice.of_sampling(c) if "outside the model's range of noise levels" in note]
        assert len(found) == notes
