"""Models of the digits: bits per dimension, and samples judged by a classifier trained only on real digits."""
import json
import sys

import numpy as np
import program
import pytest

from diffusion.data import sources

pytestmark = pytest.mark.slow


def inputs(images):
    return images.reshape(len(images), -1) / 255.0


def trained(config, workdir, steps):
    """Trains for fewer steps than the config's, enough for these thresholds, and returns the command."""
    command = [sys.executable, "-m", "diffusion.main", f"--config=configs/{config}.py", f"--workdir={workdir}",
               f"--config.train.duration={steps} steps", f"--config.train.sample_every={steps} steps"]
    program.execute(command, optimize=True)
    return command


def test_generated_digits_are_digits(tmp_path, capsys):
    from sklearn.neural_network import MLPClassifier
    train, held_out = sources.digits("train"), sources.digits("test")
    classifier = MLPClassifier((128,), max_iter=300, random_state=0).fit(inputs(train.images), train.labels)
    real = classifier.predict_proba(inputs(held_out.images))
    accuracy = (real.argmax(1) == held_out.labels).mean()
    assert accuracy > 0.95

    digits, out = trained("digits", tmp_path / "run", 900), tmp_path / "samples"
    program.execute([*digits, "--mode=sample", "--num_samples=256", "--seed=1", f"--out={out}",
                     "--config.sample.solver=ddim", "--config.sample.steps=50"], optimize=True)
    generated = classifier.predict_proba(inputs(np.load(out / "samples.npz")["arr_0"]))
    confident, counts = (generated.max(1) > 0.9).mean(), np.bincount(generated.argmax(1), minlength=10)
    with capsys.disabled():
        print(f"\nreal held-out digits: accuracy {accuracy:.3f}, confidence > 0.9 for "
              f"{(real.max(1) > 0.9).mean():.3f}; 256 generated: {confident:.3f}, counts {counts.tolist()}")
    assert confident >= 0.75
    assert counts.min() >= 5  # 25.6 expected of each
    # Not copies: the nearest training image of most samples differs by more than rounding.
    samples = np.load(out / "samples.npz")["arr_0"].astype(float).reshape(256, -1)
    nearest = np.sqrt(((samples[:, None] - train.images.reshape(1, -1, 64)) ** 2).mean(-1)).min(1)
    assert np.median(nearest) > 5


@pytest.mark.rare
def test_the_bound_is_above_the_likelihood_of_the_ode(tmp_path, capsys):
    """Kingma et al. (2021), Eq. 11, against Song et al. (2021), Eq. 39, on the same 128 held-out digits."""
    digits = trained("digits_vdm", tmp_path / "run", 600)

    def bits(estimator, **settings):
        out = tmp_path / f"{estimator}.json"
        program.execute([*digits, "--mode=likelihood", "--config.data.split=test", "--num_examples=128",
                         f"--config.likelihood.estimator={estimator}", f"--out={out}",
                         *(f"--config.likelihood.{key}={value}" for key, value in settings.items())], optimize=True)
        return json.loads(out.read_text())

    bound, ode = bits("continuous_vlb", steps=300), bits("ode", steps=50)
    with capsys.disabled():
        print("".join(f"\n{found['estimator']['estimator']}: {found['bits_per_dim']:.4f} +- "
                      f"{found['standard_error']:.4f} bits/dim" for found in (bound, ode)))
    assert ode["bits_per_dim"] < bound["bits_per_dim"] < ode["bits_per_dim"] + 0.5
    assert 3.5 < ode["bits_per_dim"] < 5  # 8 for bytes of which nothing is known
