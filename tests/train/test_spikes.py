"""Updates that are skipped because their gradient is far larger than usual."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from train.two_sets import TEACHER, batch, make, start, updates_of

from diffusion.train import loop, optimizer, spikes
from diffusion.train.step import StepMetrics
from diffusion.train.updates import rate_of

PARAMS = {"w": jnp.zeros(3)}


def run(norms, deviations=4.0, made=optax.sgd(optax.constant_schedule(0.1), momentum=0.5)):
    """(whether each update was skipped, the parameters after each, the last state) for gradients of these norms."""
    wrapped = spikes.skip_spikes(made, deviations)

    def step(carry, norm):
        params, state = carry
        grad = {"w": norm * jnp.array([0.6, 0.0, 0.8])}
        changes, state = wrapped.update(grad, state, params, known_norm=(grad, norm))
        params = optax.apply_updates(params, changes)
        return (params, state), (state.skipped, params["w"])
    (_, state), (skipped, w) = jax.lax.scan(step, (PARAMS, wrapped.init(PARAMS)), jnp.asarray(norms, jnp.float32))
    return np.asarray(skipped), np.asarray(w), state


def usual(count, seed=0):
    return 1 + 0.1 * np.random.default_rng(seed).standard_normal(count)


def test_a_spike_changes_nothing_but_the_schedules_count():
    norms = usual(300)
    norms[200] = 50.0
    skipped, w, state = run(norms)
    assert skipped[200] and skipped.sum() <= 3
    np.testing.assert_array_equal(w[200], w[199])
    assert np.abs(w[201] - w[200]).max() > 0
    _, kept, other = run(np.delete(norms, 200))
    assert np.abs(w[-1] - kept[-1]).max() < 0.2  # but for another update at the edge
    counts = [jax.tree.leaves(s.inner[1])[0] for s in (state, other)]
    assert counts[0] == 300 and counts[1] == 299


def test_the_first_updates_are_made_and_norms_that_stay_large_become_usual():
    early, late = usual(100), usual(600)
    early[50] = 80.0
    skipped, *_ = run(np.concatenate([early, late, np.full(600, 5.0)]))
    assert skipped[700]
    assert not skipped[:100].any() and not skipped[-200:].any()


def test_norms_are_compared_with_the_mean_and_the_deviation_before():
    norms = usual(400, seed=1)
    skipped, *_ = run(norms, deviations=2.0)
    mean = square = 0.0
    for i, norm in enumerate(np.float32(norms).astype(float)):
        seen = max(1 - 0.99**i, 0.01)
        limit = mean / seen + 2 * np.sqrt(max(square / seen - (mean / seen) ** 2, 0))
        spike = i >= 100 and norm > limit
        assert spike == skipped[i] or abs(norm - limit) < 1e-3
        enters = limit if skipped[i] else norm
        mean, square = mean + 0.01 * (enters - mean), square + 0.01 * (enters**2 - square)
    assert 1 < skipped.sum() < 30
    with pytest.raises(ValueError, match="spike"):
        spikes.skip_spikes(optax.sgd(0.1), 0.0)


def test_it_keeps_what_an_optimizer_evaluates():
    free = optimizer.schedule_free(optax.constant_schedule(0.1), lambda params: jax.tree.map(lambda x: False, params))
    wrapped = spikes.skip_spikes(free, 3.0)
    assert wrapped.evaluated(wrapped.init(PARAMS), PARAMS).keys() == PARAMS.keys()


def test_a_step_says_that_it_was_skipped(monkeypatch):
    """Of two networks: those of the skipped update stay, the other's are trained."""
    monkeypatch.setattr(spikes, "FIRST", 2)
    updates = updates_of()
    updates[1] = type(updates[1])(**vars(updates[1]) | {"optimizer": spikes.skip_spikes(updates[1].optimizer, 1e-3)})
    step, state = jax.jit(make(updates)), start(updates)
    found = []
    for k in range(8):
        before = state.params
        state, metrics = step(state, batch(k), None, {"teacher": TEACHER})
        same = [np.array_equal(before[name]["w"], state.params[name]["w"]) for name in ("online", "fake")]
        assert same == [bool(metrics.skipped), False]
        found.append(int(metrics.skipped))
    assert found[:2] == [0, 0] and 0 < sum(found) < 8
    assert np.isfinite(rate_of(updates[1], state.opt_state["online"]))


def test_the_log_counts_and_names_what_was_skipped():
    said, zeros = [], np.zeros((1, 1), np.float32)
    clock = loop.Clock(step=6)
    window = loop.Window(clock, loop.Durations(total=9, log_every=1, sample_every=1, checkpoint_every=1, batch_size=3),
                         None, said.append)
    window.pending = [(6, 18, StepMetrics(
        loss=np.ones(1), grad_norm=np.full(1, 7.5), learning_rate=np.ones(1), counted=np.ones(1, int),
        bad_position=np.full((1, 8), -1), bad_log_snr=np.full((1, 8), np.nan), skipped=np.ones(1, int), bin_loss=zeros,
        bin_count=zeros, bin_weight=zeros, others={}))]
    window.fetch()
    assert said == ["step 7 is skipped: its gradient norm 7.5 is a spike (config.train.spike)"]
    assert clock.window["skipped"] == 1 and clock.window["loss"] == 1 and clock.skipped_in_a_row == 0
