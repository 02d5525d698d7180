"""Settings of diffusers' schedulers without PyTorch: there and back, and what is refused by name."""
import numpy as np
import pytest

from diffusion import build
from diffusion import config as config_lib
from diffusion.errors import CheckpointError, ConfigError
from diffusion.interop import scheduler

# scheduler_config.json of google/ddpm-cifar10-32.
PUBLISHED = {"_class_name": "DDPMScheduler", "_diffusers_version": "0.1.1", "beta_end": 0.02, "beta_schedule": "linear",
             "beta_start": 0.0001, "clip_sample": True, "num_train_timesteps": 1000, "trained_betas": None,
             "variance_type": "fixed_large"}
CHANGES = {
    "published": {}, "ddim": dict(_class_name="DDIMScheduler"), "scaled": dict(beta_schedule="scaled_linear"),
    "cosine": dict(beta_schedule="squaredcos_cap_v2"), "sigmoid": dict(beta_schedule="sigmoid"),
    "betas": dict(num_train_timesteps=10, beta_start=0.001, beta_end=0.5),
    "table": dict(trained_betas=[0.1, 0.2, 0.3], num_train_timesteps=3), "sample": dict(prediction_type="sample"),
    "v": dict(prediction_type="v_prediction"), "small": dict(variance_type="fixed_small"),
    "learned": dict(variance_type="learned_range"), "no clip": dict(clip_sample=False),
    "clip range": dict(clip_sample_range=2.5), "linspace": dict(timestep_spacing="linspace"),
    "trailing": dict(timestep_spacing="trailing"), "offset": dict(steps_offset=1),
    "threshold": dict(thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=1.5),
    "zero snr": dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    "end": dict(_class_name="DDIMScheduler", set_alpha_to_one=False),
}


def config_of(sections: dict):
    return config_lib.adopted(sections, "scheduler_config.json")


def write(c) -> dict:
    sample = c.sample.to_dict() | {"clip": build.clips(c)}
    return scheduler.write_settings(c.process.to_dict(), sample, c.prediction, build.betas(c.process))


@pytest.mark.parametrize("name", CHANGES)
def test_settings_go_there_and_back(name):
    """Those that the class has, as diffusers would be given them."""
    given = PUBLISHED | CHANGES[name]
    if given["_class_name"] != "DDPMScheduler":
        del given["variance_type"]
    c = config_of(scheduler.read_settings(given, "s"))
    back = write(c)
    known = scheduler.SCHEDULERS[given["_class_name"]].fields
    assert back.keys() - {"_class_name"} <= known.keys(), "diffusers warns of settings that the class has not"
    values = [{key: s.get(key, field.default) for key, field in known.items()} for s in (back, given)]
    assert values[0] == values[1]


def test_the_published_settings_are_the_papers():
    c = config_of(scheduler.read_settings(PUBLISHED, "s"))
    base = config_lib.base()
    assert c.process == base.process and c.prediction == "eps"
    assert (c.sample.solver, c.sample.variance, c.sample.steps, c.sample.clip) == ("ancestral", "large", 1000, True)


def test_what_a_file_lacks_is_diffusers_default():
    c = config_of(scheduler.read_settings({"_class_name": "DDIMScheduler"}, "s"))
    assert (c.sample.steps, c.sample.spacing, c.sample.end, c.sample.rederive_eps) == (50, "leading", 0, False)
    assert config_of(scheduler.read_settings({"_class_name": "DDPMScheduler"}, "s")).sample.variance == "small"


def test_settings_of_old_files_are_read():
    old = {"_class_name": "DDPMScheduler", "predict_epsilon": False, "tensor_format": "pt", "timestep_values": None}
    assert config_of(scheduler.read_settings(old, "s")).prediction == "x0"


@pytest.mark.parametrize("change, message", [
    (dict(_class_name="ScoreSdeVeScheduler"),
     "describes a ScoreSdeVeScheduler, .*: the step size of its corrector is .* The schedulers are"),
    (dict(beta_schedule="laplace"), "beta_schedule = 'laplace' is not supported. It can be one of: linear"),
    (dict(variance_type="fixed_large_log"), "variance_type = 'fixed_large_log' is not supported"),
    (dict(variance_type="learned"), "variance_type = 'learned' is not supported"),
    (dict(prediction_type="flow"), "prediction_type = 'flow' is not supported"),
    (dict(timestep_spacing="karras"), "timestep_spacing = 'karras' is not supported"),
])
def test_a_setting_that_we_lack_is_named(change, message):
    with pytest.raises(CheckpointError, match="some/file.*" + message):
        scheduler.read_settings(PUBLISHED | change, "some/file")


def test_zero_terminal_snr_with_eps_teaches():
    c = config_of(scheduler.read_settings(PUBLISHED | dict(rescale_betas_zero_snr=True), "s"))
    with pytest.raises(ConfigError, match="zero_terminal_snr.*Predict v, velocity or x0 .Lin et al. 2024"):
        build.model(c)


def test_a_schedule_that_diffusers_cannot_name_becomes_a_table():
    c = config_lib.base(process="cosine")
    c.process.offset, c.process.steps = 0.02, 50
    written = write(c)
    back = config_of(scheduler.read_settings(written, "s"))
    np.testing.assert_array_equal(build.betas(back.process), build.betas(c.process))


def test_rescaled_times_are_not_diffusers():
    c = config_lib.base()
    c.process.rescale_times, c.process.steps = True, 4000
    with pytest.raises(CheckpointError, match="rescale_times with config.process.steps = 4000"):
        write(c)
    c.process.steps = 1000  # where it changes nothing
    assert write(c)
