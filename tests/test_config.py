"""Config mistakes are caught before anything is compiled, with a message that explains the rule."""
import functools
import pathlib

import pytest

from diffusion import build, config_flags, families
from diffusion import config as config_lib
from diffusion.build import advice
from diffusion.build.training import rate_of
from diffusion.errors import ConfigError, DataError

ROOT = pathlib.Path(__file__).parent.parent
FILES = sorted((ROOT / "configs").glob("*.py"))


def digits(**changes):
    config = config_flags.load(str(ROOT / "configs" / "digits.py"))
    return config_lib.override(config, {k.replace("__", "."): v for k, v in changes.items()})


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_every_config_file_builds_a_model_and_says_how_to_run_it(path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    build.model(build.measured(config_flags.load(str(path)), assume=True))  # without the data
    assert f"--config=configs/{path.name}" in path.read_text()


def test_cifar10_is_the_papers_model():
    config, parameters = config_flags.load(str(ROOT / "configs" / "cifar10.py")), 0
    import jax
    parameters = sum(x.size for x in jax.tree.leaves(build.model(config).abstract_params))
    assert parameters == 35_746_307
    assert (config.train.batch_size, config.optimizer.learning_rate, config.optimizer.warmup) == (
        128, 2e-4, "5000 steps")
    assert (config.network.dropout, config.data.flip, config.train.duration) == (0.1, True, "800k steps")
    half_life = float(config.ema.half_life.split()[0])
    assert 0.5 ** (128 / half_life) == pytest.approx(0.9999, abs=1e-9)


@pytest.mark.parametrize("changes, words", [
    (dict(process__name="linaer"), ["process.name", "'linear'", "cosine"]),
    (dict(prediction="epsilon"), ["prediction", "'eps'", "v, velocity, x0"]),
    (dict(loss__weighting="minsnr"), ["loss.weighting", "'min_snr'"]),
    (dict(network__name="dti"), ["network.name", "'dit'", "unet"]),
    (dict(network__name="dit", network__channels=36, network__heads=6, network__groups=8), ["network.groups"]),
    (dict(network__remat="some"), ["network.remat", "full, light, none"]),
    (dict(optimizer__mu_dtype="float16"), ["optimizer.mu_dtype", "bfloat16"]),
    (dict(ema__dtype="float64"), ["ema.dtype", "bfloat16, float32"]),
    (dict(train__nonfinite="ignore"), ["train.nonfinite", "skip, stop"]),
    (dict(train__keep_every="7 steps"), ["train.keep_every", "multiple of train.checkpoint_every"]),
    (dict(train__keep_best=-1), ["train.keep_best"]),
    (dict(train__best_metric="fid"), ["train.best_metric", "grad_norm, loss"]),
    (dict(train__stall_seconds=-1.0), ["train.stall_seconds"]),
    (dict(mesh__tensor=2), ["mesh.tensor", "1 devices"]),
    (dict(mesh__rules=("nowhere/kernel: fsdp",)), ["config.mesh.rules", "matches no parameter", "conv_in"]),
    (dict(mesh__rules=("kernel",)), ["mesh.rules", "REGEX: AXES"]),
    (dict(mesh__rules=("kernel: data",)), ["config.mesh.rules", "fsdp and tensor"]),
    (dict(mesh__rules=("(: fsdp",)), ["config.mesh.rules", "not a regular expression"]),
    (dict(network__dtype="float16"), ["network.dtype", "bfloat16"]),
    (dict(network__groups=5), ["network.groups", "[32, 64]"]),
    (dict(network__heads=3), ["network.heads", "divide"]),
    (dict(network__multipliers=(1, 1, 1, 1, 1)), ["network.multipliers", "8 pixels"]),
    (dict(network__attention_resolutions=(16,)), ["attention_resolutions", "[8, 4]"]),
    (dict(network__dropout=1.5), ["network.dropout", "below 1"]),
    (dict(network__num_classes=5), ["network.num_classes", "10 classes"]),
    (dict(process__name="linear", process__beta_end=1.5), ["process.beta_start", "Ho et al."]),
    (dict(process__steps=0), ["process.steps"]),
    (dict(process__name="cosine", process__offset=1e30), ["process.name", "its betas must lie in (0, 1)"]),
    (dict(process__name="constant", process__beta_end=1.0), ["process.name", "only the last may be 1"]),
    (dict(process__name="jsd", prediction="eps"), ["config.prediction", "'jsd'", "Lin et al. 2024"]),
    (dict(process__name="table_of", process__table_of="flow"), ["process.table_of", "laplace, shifted_cosine, vp"]),
    (dict(process__name="warmup", process__warmup_share=2.0), ["process.warmup_share", "0.1 and 0.5"]),
    (dict(sample__spacing="times", sample__custom_times=(9, 5, 5), sample__steps=3), ["custom_times", "falling times"]),
    (dict(sample__solver="dimm"), ["sample.solver", "'ddim'"]),
    (dict(sample__steps=2000), ["sample.steps", "1 .. 1000"]),
    (dict(sample__steps=0, sample__solver="euler"), ["sample.steps", "1 or more"]),
    (dict(sample__solver="ddim", sample__eta=2.0), ["sample.eta", "Eq. 16"]),
    (dict(sample__eta=0.5), ["config.sample.eta is a key of sample.solver = ", "ddim", "sa_solver", "is 'ancestral'"]),
    (dict(sample__eta=0.5, sample__solver="unipc"), ["config.sample.solver is 'unipc'", "leave the key out"]),
    (dict(sample__variance="medium"), ["sample.variance", "large, learned_range, mixed, small"]),
    (dict(sample__spacing="karras"), ["sample.spacing", "was trained at", "linspace, leading or trailing"]),
    (dict(sample__spacing="even"), ["sample.spacing", "karras, leading, linspace"]),
    (dict(sample__batch_size=0), ["sample.batch_size"]),
    (dict(sample__clip_range=0.0), ["sample.clip_range"]),
    (dict(sample__variance_share=1.5), ["sample.variance_share", "0.2"]),
    (dict(process__name="vp", sample__spacing="uniform", sample__t_min=1e-6), ["sample.t_min", "1e-05"]),
    (dict(sample__dynamic_threshold=1.0), ["sample.dynamic_threshold", "0.995"]),
    (dict(sample__threshold_max=0.5), ["sample.threshold_max"]),
    (dict(sample__offset=-1), ["sample.offset"]),
    (dict(sample__spacing="leading", sample__steps=1000, sample__offset=1), ["sample.offset", "above T = "]),
    (dict(sample__end=2), ["sample.end"]),
    (dict(sample__variance="learned_range"), ["sample.variance", "learned_range"]),
    (dict(learned_range=True), ["learned_range", "hybrid"]),
    (dict(loss__name="hybrid"), ["loss.name", "learned_range is off"]),
    (dict(loss__density="log_normal"), ["loss.density", "whole times"]),
    (dict(process__name="vp", loss__density="importance", sample__spacing="uniform"),
     ["loss.density", "continuous time"]),
    (dict(process__name="learned", sample__spacing="uniform"), ["process.name", "continuous_vlb"]),
    (dict(process__name="edm", process__sigma_min=100.0), ["process.sigma_min", "0.002 and 80"]),
    (dict(process__name="vp"), ["sample.spacing", "continuous time", "karras"]),
    (dict(process__name="flow", prediction="velocity", sample__spacing="karras"), ["sample.spacing", "infinite"]),
    (dict(process__name="vp", sample__spacing="times", sample__custom_times=(0.5, 0.7)), ["custom_times", "falling"]),
    (dict(process__name="ve", sample__spacing="noise_levels", sample__steps=2, sample__custom_times=(150.0, 1.0)),
     ["sample.custom_times", "0.02 to 100"]),
    (dict(process__name="edm", sample__spacing="noise_levels", sample__steps=2, sample__custom_times=(80.0, 1e-3)),
     ["sample.custom_times", "0.002 to 80"]),
    (dict(process__name="ve", process__sigma_max=float("inf")), ["process.sigma_max", "finite"]),
    (dict(process__name="vp", process__beta_min=float("nan")), ["process.beta_min", "finite"]),
    (dict(process__name="ve", process__sigma_max=1e30), ["process.name", "1e+30", "float32"]),
    (dict(process__name="shifted_cosine", process__log_snr_min=-3e3, process__log_snr_max=-2e3), ["process.name"]),
    (dict(process__name="shifted_cosine", process__shift=1e-300), ["process.name", "float32"]),
    (dict(loss__weighting="p2", loss__p2_k=float("inf")), ["loss.p2_k", "finite"]),
    (dict(process__name="vp", sample__schedule="linear", sample__sigma_min=0.0), ["sample.sigma_min", "-1"]),
    (dict(process__name="vp", sample__spacing="times", sample__steps=2, sample__custom_times=(1.5, 0.5)),
     ["sample.custom_times", "times outside", "1e-05 to 1"]),
    (dict(sample__spacing="log_snr"), ["sample.spacing", "was trained at", "between_times"]),
    (dict(sample__solver="heun"), ["sample.solver", "was trained at", "between_times"]),
    (dict(sample__solver="ddim", sample__order=2), ["sample.order is a key of", "unipc", "is 'ddim'"]),
    (dict(sample__solver="unipc", sample__order=5), ["sample.order", "one of: 1, 2, 3"]),
    (dict(sample__solver="unipc", sample__corrector="langevin"), ["sample.corrector", "reverse_diffusion"]),
    (dict(sample__corrector="langevin", sample__rederive_eps=False), ["sample.corrector", "needs a score"]),
    (dict(sample__solver="ddim", sample__churn=1.0), ["sample.churn is a key of", "euler, heun", "is 'ddim'"]),
    (dict(sample__guidance__name="classifier_free"), ["sample.guidance.name", "none: network.num_classes"]),
    (dict(sample__guidance__name="classifier_free", network__num_classes=10),
     ["sample.guidance.name", "network.label_dropout", "Ho & Salimans"]),
    (dict(network__label_dropout=0.1), ["network.label_dropout", "num_classes"]),
    (dict(ema__half_life="10M images", ema__warmup_ratio=0.0), ["ema.half_life", "longer than the training"]),
    (dict(process__name="table"), ["process.betas", "numbers in (0, 1)"]),
    (dict(process__zero_terminal_snr=True, prediction="eps"), ["process.zero_terminal_snr", "Lin et al. 2024"]),
    (dict(process__name="flow", prediction="eps", sample__spacing="uniform"), ["config.prediction", "'flow'", "x0"]),
    (dict(process__name="flow", prediction="x0_and_eps", sample__spacing="uniform"), ["config.prediction", "'flow'"]),
    (dict(process__name="flow", prediction="velocity", sample__spacing="uniform", sample__solver="euler_maruyama"),
     ["sample.solver", "drift is infinite"]),
    (dict(network__up_attention_resolutions=(5,)), ["network.up_attention_resolutions"]),
    (dict(network__head_channels=700), ["network.head_channels", "at most the channels"]),
    (dict(network__activation="tanh"), ["network.activation", "gelu, mish, relu, swish"]),
    (dict(network__downsample=("conv", "pool")), ["network.downsample", "conv, resblock"]),
    (dict(network__upsample=("conv",) * 3), ["network.upsample", "one kind, or one for each of 2 levels"]),
    (dict(network__middle="both"), ["network.middle", "attention, none, plain"]),
    (dict(network__middle_groups=7), ["network.middle_groups"]),
    (dict(network__embedding="sines"), ["network.embedding", "fourier, learned, positional"]),
    (dict(network__embedding="learned"), ["network.embedding_rows", "number of times"]),
    (dict(network__embedding="learned", network__embedding_rows=9), ["network.embedding", "each of 9 whole times"]),
    (dict(network__embedding="fourier"), ["network.embedding", "logarithm"]),
    (dict(network__multipliers=()), ["network.multipliers", "at least one"]),
    (dict(network__multipliers=(1, 1.001)), ["network.multipliers", "whole numbers"]),
    (dict(network__freq_shift=1000.0), ["network.freq_shift"]),
    (dict(network__norm_epsilon=0.0), ["network.norm_epsilon"]),
    (dict(mesh__fsdp=3), ["mesh.fsdp", "1 devices"]),
    (dict(data__name="imagenet"), ["data.name", "digits, file, folder, fsdd, idx, mixture, moving_mnist, tfds"]),
    (dict(data__split="valid"), ["split"]),
    (dict(data__size=16, network__attention_resolutions=()), ["8x8x1", "16x16x1", "config.data.size"]),
    (dict(data__channels=3), ["8x8x1", "8x8x3", "config.data.channels"]),
    (dict(train__duration="1000"), ["train.duration", "'2000 steps'"]),
    (dict(train__log_every="5 minutes"), ["train.log_every", "epochs"]),
    (dict(train__accumulate=3), ["train.batch_size", "63", "66"]),
    (dict(train__steps_per_dispatch=7), ["train.duration", "7"]),
    (dict(train__steps_per_dispatch=600), ["train.steps_per_dispatch", "above 256", "compiled separately"]),
    (dict(train__keep_checkpoints=0), ["keep_checkpoints"]),
    (dict(optimizer__warmup="5000 steps"), ["optimizer.warmup", "5000", "1800"]),
    (dict(optimizer__decay="exponential"), ["optimizer.decay", "constant, cosine, inverse_sqrt, linear"]),
    (dict(optimizer__learning_rate=-1.0), ["learning_rate", "positive"]),
    (dict(optimizer__beta1=1.0), ["optimizer.beta1", "[0, 1)"]),
    (dict(optimizer__beta2=-0.5), ["optimizer.beta2", "[0, 1)"]),
    (dict(optimizer__epsilon=-1.0), ["optimizer.epsilon", "positive"]),
    (dict(data__workers=-1), ["data.workers", "not be negative"]),
    (dict(ema__half_life="0 images"), ["ema.half_life"]),
])
def test_wrong_values(changes, words):
    with pytest.raises((ConfigError, DataError)) as error:
        config = digits(**changes)
        model = build.model(config)
        build.generate(config, model)
        build.training(config, model)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("of, changes, words", [
    (advice.of_training, dict(prediction="eps", loss__space="x0", loss__weighting="simple"), ["loss.space", "1 / SNR"]),
    (advice.of_training, dict(loss__name="vlb"), ["loss.density", "importance", "cosine schedule"]),
    (advice.of_training, dict(loss__weighting="truncated_snr", prediction="eps"), ["diverges", "Table 1"]),
    (advice.of_training, dict(process__name="ve", process__sigma_min=0.01, process__sigma_max=50.0), ["[-1, 1]"]),
    (advice.of_training, dict(data__channels=40), ["prediction", "40 numbers", "JiT"]),
    (advice.of_training, dict(data__channels=3, network__name="dit", network__patch=4), ["48 numbers", "JiT"]),
    (advice.of_training, dict(process__name="learned", loss__name="continuous_vlb"), ["loss.stratified"]),
    (advice.of_training, dict(process__name="edm", prediction="edm", loss__weighting="edm"), ["log_normal"]),
    (advice.of_training, dict(process__name="edm", prediction="edm", loss__density="log_normal"), ["weighting=edm"]),
    (advice.of_training, dict(process__name="flow", data__size=256), ["process.shift", "256 pixels"]),
    (advice.of_sampling, dict(sample__variance="large", sample__steps=50), ["sample.solver", "FID 32.72"]),
    (advice.of_sampling, dict(process__zero_terminal_snr=True, sample__spacing="leading"), ["spacing", "trailing"]),
    (advice.of_sampling, dict(learned_range=True), ["sample.variance", "learned_range"]),
    (advice.of_sampling, dict(sample__guidance__name="classifier_free", sample__guidance__scale=4.0,
                              sample__dynamic_threshold=0.995, sample__solver="dpm_solver"), ["unstable"]),
    (advice.of_sampling, dict(sample__guidance__name="classifier_free", sample__guidance__scale=4.0), ["saturates"]),
    (advice.of_sampling, dict(sample__solver="adaptive_ode"), ["sample.clip", "kinks"]),
])
def test_what_is_poor_is_said_once(of, changes, words):
    assert of(digits()) == []
    (note,) = of(digits(**changes))
    assert note.startswith("note: config.") and all(word in note for word in words), note


def test_what_no_memory_holds_is_refused(monkeypatch):
    from diffusion.build import memory
    monkeypatch.setattr(memory, "memory_limit", lambda: 2**30)
    config = digits()
    model = build.model(config)
    build.check_memory(config, model, model.abstract_params, rows=64, key="train.batch_size")
    with pytest.raises(ConfigError, match="train.batch_size = 1000000: needs 7.63 GiB for only one feature.*has 1 GiB"):
        build.check_memory(config, model, model.abstract_params, rows=10**6, key="train.batch_size")
    model = build.model(digits(network__channels=8192))
    with pytest.raises(ConfigError, match="This model takes .* GiB of memory without a single image.*mesh.fsdp"):
        build.check_memory(config, model, model.abstract_params, rows=1, key="train.batch_size")


def test_another_learning_rate_of_a_run_that_goes_on_is_said():
    config = digits(optimizer__learning_rate=1e-3, optimizer__decay="cosine", optimizer__warmup="1 step",
                    train__duration="12 steps")
    rates, now = functools.partial(rate_of, epoch_size=None), config_lib.keys(config)
    said = lambda step=6, **changes: advice.of_another_rate(  # noqa: E731
        config, {**now, **{key.replace("__", "."): value for key, value in changes.items()}}, rates, step)
    assert said() == [] == advice.of_another_rate(config, None, rates, 6) == said(train__log_every="1 step")
    (note,) = said(train__duration="6 steps")
    assert "after step 6 is 0.000571; it was to be 0 (train.duration was 6 steps, is 12 steps)" in note
    assert "--config.optimizer.decay=constant" in note
    (note,) = said(optimizer__learning_rate=2e-3)
    assert "it was to be 0.00114 (optimizer.learning_rate was 0.002, is 0.001)" in note
    config = digits(optimizer__decay="constant", optimizer__learning_rate=1e-3, optimizer__warmup="1 step")
    now = config_lib.keys(config)
    assert said(train__duration="6 steps") == [] and len(said(optimizer__decay="linear")) == 1


def test_the_config_is_locked():
    with pytest.raises(AttributeError, match="duration"):
        config_lib.base().train.durtion = "1 steps"


def test_a_config_that_lacks_a_key_is_refused():
    config = config_lib.base()
    with config.unlocked():
        del config.train.duration
    with pytest.raises(ConfigError, match="does not have the keys.*: train.duration"):
        config_flags.checked(config, "mine.py")


def test_the_keys_of_p2_are_its_own():
    config = config_lib.override(config_lib.base(weighting="p2"), {"loss.p2_k": 2.0, "loss.p2_gamma": 0.5})
    weighting = families.BY_NAME["weighting"].bound(config.loss)
    assert float(weighting(1.0, 1.0)) == pytest.approx((2 + 1) ** -0.5)  # at SNR 1


def test_the_steps_have_the_seed_of_the_config(monkeypatch):
    from diffusion.train import step
    seen, make = {}, step.make_train_step
    monkeypatch.setattr(step, "make_train_step", lambda **given: (seen.update(given), make(**given))[1])
    config = digits(seed=7)
    build.training_step(config, build.model(config), 100)
    assert seen["seed"] == 7


def test_only_the_bound_of_a_chain_clips(monkeypatch):
    """The bound of a chain clips x0 as its sampler does; clipping would put kinks into an ODE or an integral over t."""
    from types import SimpleNamespace

    from diffusion.build import likelihood
    from diffusion.core.parameterization import Diffusion
    seen = {}
    monkeypatch.setattr(likelihood, "make_evaluator", lambda *_, **given: seen.update(given))
    for name, estimator, clips in (("linear", "vlb", True), ("vp", "continuous_vlb", False), ("vp", "ode", False)):
        config = digits(process__name=name, likelihood__estimator=estimator, likelihood__steps=10, sample__clip=True)
        process = build.process(config.process)
        model = SimpleNamespace(process=process, network=None, denoiser=None, denoiser_with_jvp=None, mesh=None,
                                num_classes=0, spec=None, conditions={})
        likelihood.evaluator(config, model, 0)
        diffusion = Diffusion(process, lambda x_t, t, cond=None: None)
        assert (seen["transform"](diffusion) is not diffusion) == clips, estimator
