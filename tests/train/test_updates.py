"""Objectives of several updates: who is trained, when, and what a resumed training repeats."""
import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import program
import pytest
from train.two_sets import AVERAGES, TEACHER, batch, created, fake, init, make, start, student, updates_of

from diffusion.errors import FieldError
from diffusion.parallel import sharding
from diffusion.train import optimizer, step
from diffusion.train.averages import Average, Copy
from diffusion.train.state import init_state
from diffusion.train.updates import Update, check_updates, due, rate_of

FROZEN = {"teacher": TEACHER}
UPDATES = updates_of()


@pytest.fixture(scope="module")
def both():
    return jax.jit(make(UPDATES), static_argnums=4)


def same(a, b):
    return [np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]


def test_gradients_reach_only_the_set_that_is_trained_also_through_the_inputs_of_others(both):
    """The student's loss passes through the fake score and the fake score's through the student: each alone moves one
    set, and both together are the two alone, since both start at the parameters before the step."""
    state = start(UPDATES)
    (one, m1), (other, m2), (together, m) = (both(state, batch(), None, FROZEN, made) for made in (
        (True, False), (False, True), (True, True)))
    assert not any(same(one.params["fake"], state.params["fake"])) and all(same(one.params["online"],
                                                                               state.params["online"]))
    assert not any(same(other.params["online"], state.params["online"])) and all(same(other.params["fake"],
                                                                                     state.params["fake"]))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), together.params,
                 {"online": other.params["online"], "fake": one.params["fake"]})
    assert m.loss == pytest.approx(float(m1.loss)) and float(m2.counted) == 0 and m2.loss == 0
    assert m.others["online"]["loss"] == pytest.approx(float(m2.others["online"]["loss"]))
    assert m1.bin_count.sum() == 8 and m2.bin_count.sum() == 0


def test_the_gradient_passes_through_the_networks_that_are_held(both):
    """d loss / d w of the student, against a difference of losses: through its sample, the teacher and the fake."""
    def at(w):
        state = start(UPDATES)
        params = state.params | {"online": state.params["online"] | {"w": jnp.float32(w)}}
        new, m = both(dataclasses.replace(state, params=params), batch(), None, FROZEN, (False, True))
        return float(m.others["online"]["loss"]), float(new.opt_state["online"][0].mu["w"]) / 0.1
    slope = (at(0.31)[0] - at(0.29)[0]) / 0.02
    assert at(0.3)[1] == pytest.approx(slope, rel=1e-2) and abs(slope) > 1e-2


def test_an_update_that_is_not_due_leaves_its_optimizer_and_its_rate_untouched(both):
    state = start(UPDATES)
    new, m = both(state, batch(), None, FROZEN, (True, False))
    assert all(same(new.opt_state["online"], state.opt_state["online"]))
    rates = []
    for made in ((True, True), (True, False), (True, True)):
        state, m = both(state, batch(), None, FROZEN, made)
        rates.append(float(m.others["online"]["learning_rate"]))
    assert rates[0] == pytest.approx(0.01) and np.isnan(rates[1]) and rates[2] == pytest.approx(0.011)
    assert int(state.opt_state["online"][0].count) == 2 and int(state.step) == 3


def test_one_program_for_each_set_of_due_updates():
    updates, mesh = updates_of(every=3), sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    shardings = jax.tree.map(lambda x: x.sharding, created(updates, mesh)[1])
    programs = step.compile_train_step(make(updates), mesh=mesh, steps=1, updates=updates, state_shardings=shardings)
    assert [due(updates, n) for n in range(4)] == [(True, True), (True, False), (True, False), (True, True)]
    assert programs(0) is programs(3) is programs(6) and programs(1) is programs(2) and programs(0) is not programs(1)


@pytest.mark.slow
def test_several_steps_of_different_updates_in_one_dispatch_equal_single_ones():
    updates, mesh = updates_of(every=2), sharding.make_mesh(1, 1, 1, jax.devices()[:1])
    create, abstract = created(updates, mesh)
    shardings = jax.tree.map(lambda x: x.sharding, abstract)
    rows = [sharding.place_batch(jax.tree.map(lambda x: x[None], batch(k)), mesh, leading=1) for k in range(3)]
    of = {k: step.compile_train_step(make(updates), mesh=mesh, steps=k, updates=updates, state_shardings=shardings)
          for k in (1, 3)}
    at_once, told = of[3](0)(create(), jax.tree.map(lambda *x: jnp.concatenate(x), *rows), None, FROZEN)
    state, counted = create(), []
    for k, row in enumerate(rows):
        state, m = of[1](k)(state, row, None, FROZEN)
        counted.append(int(m.others["online"]["counted"][0]))
    assert counted == told.others["online"]["counted"].tolist() == [1, 0, 1]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(np.asarray(x, float), np.asarray(y, float), rtol=1e-6),
                 at_once, state)


def test_updates_of_two_sets_have_streams_of_their_own():
    """Else the fake score would be judged at the noise that the student was moved by."""
    seen = {}

    def loss(name):
        def per_example(bind, inputs):
            jax.debug.callback(lambda noise, t: seen.setdefault(name, (noise.tolist(), t.tolist())), jax.vmap(
                lambda key: jax.random.normal(key))(inputs.keys("loss")), inputs.times.t)
            return bind(name).denoise(inputs.x0, inputs.times.t).x0.mean((1, 2, 3)), {}
        return per_example

    updates = [dataclasses.replace(u, loss=loss(u.trains)) for u in UPDATES]
    jax.jit(make(updates))(start(updates), batch())
    jax.effects_barrier()
    assert not set(seen["fake"][0]) & set(seen["online"][0]) and seen["fake"][1] != seen["online"][1]


def test_what_is_not_finite_in_any_update_is_skipped_as_a_whole():
    def broken(bind, inputs):
        per_example, aux = student(bind, inputs)
        return per_example.at[3].set(jnp.nan), aux

    updates = [UPDATES[0], dataclasses.replace(UPDATES[1], loss=broken)]
    state = start(updates)
    new, m = jax.jit(make(updates, skip_nonfinite=True))(state, batch(), None, FROZEN)
    assert m.skipped and m.bad_position.tolist() == [3] + [-1] * 7 and np.isfinite(m.loss)
    assert all(same(new.params, state.params)) and all(same(new.averages, state.averages)) and new.step == 1
    assert new.opt_state["online"][0].count == 0 and new.opt_state["online"][1].count == 1  # the rate goes on


def test_accumulation_changes_rounding_only(both):
    (one, m1), (four, m4) = (f(start(UPDATES), batch(), None, FROZEN) for f in (both, jax.jit(make(
        UPDATES, accumulate=4))))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), four.opt_state["online"][0].mu,
                 one.opt_state["online"][0].mu)
    np.testing.assert_allclose(four.params["fake"]["w"], one.params["fake"]["w"], rtol=1e-5)


def of(**changes):
    return dataclasses.replace(UPDATES[0], **changes)


@pytest.mark.parametrize(("updates", "words"), [
    ([of(trains="fakes"), UPDATES[1]], ["fakes", "not a parameter set that is trained", "fake, online"]),
    ([UPDATES[0], UPDATES[0], UPDATES[1]], ["'fake'", "two updates", "add their losses"]),
    ([of(every=2), dataclasses.replace(UPDATES[1], every=3)], ["in which nothing is trained"]),
    ([of(every=0), UPDATES[1]], ["whole number of steps"]),
    ([UPDATES[1]], ["do not train the set 'fake'", "frozen"]),
    ([], ["must have an update"])])
def test_updates_that_cannot_be_meant_are_refused(updates, words):
    with pytest.raises(FieldError) as error:
        check_updates(updates, ["online", "fake"], {"ema": "online"}, ["teacher"])
    assert all(word in str(error.value) for word in words)


def test_names_must_differ_and_averages_follow_a_trained_set():
    for averages, frozen, words in (({"teacher": "online"}, ["teacher"], "'teacher'.*the name of two"),
                                    ({"raw": "online"}, [], "'raw'.*the name of two"),
                                    ({"ema": "teacher"}, ["teacher"], "'ema'.*follows 'teacher'.*not trained")):
        with pytest.raises(FieldError, match=words):
            check_updates(UPDATES, ["online", "fake"], averages, frozen)


def test_an_update_whose_loss_does_not_read_its_set_is_an_error_before_any_compilation():
    updates = [of(loss=student), UPDATES[1]]
    jax.eval_shape(make(updates), start(updates), batch(), None, FROZEN)  # reads the fake score, too
    updates = [of(loss=lambda bind, inputs: (bind("online").denoise(inputs.x0, 3).x0.mean((1, 2, 3)), {})), UPDATES[1]]
    with pytest.raises(ValueError, match="update of 'fake' does not use.*asks for online. Nothing would be trained"):
        jax.eval_shape(make(updates), start(updates), batch(), None, FROZEN)


def test_a_set_that_is_missing_is_named_with_those_there_are():
    with pytest.raises(ValueError, match="'teacher'. There are: ema, fake, online, target"):
        jax.eval_shape(make(UPDATES), start(UPDATES), batch())


def test_the_rate_is_read_from_the_state_that_applies_it():
    optimizer = optax.inject_hyperparams(optax.adam)(learning_rate=optax.linear_schedule(0.1, 0.2, 2))
    update, state = Update(loss=fake, optimizer=optimizer), optimizer.init({"w": jnp.zeros(())})
    rates = []
    for _ in range(3):
        rates.append(float(rate_of(update, optimizer.update({"w": jnp.ones(())}, state)[1])))
        state = optimizer.update({"w": jnp.ones(())}, state)[1]
    np.testing.assert_allclose(rates, [0.1, 0.15, 0.2], rtol=1e-6)
    assert np.isnan(rate_of(Update(loss=fake, optimizer=optax.sgd(0.1)), optax.sgd(0.1).init({})))


def test_an_average_of_another_set_follows_that_set():
    averages = AVERAGES | {"fake_before": Average(rule=Copy(every=1), of="fake")}
    from diffusion.train.state import init_state
    state = start(UPDATES)
    state = init_state(state.params, {u.trains: u.optimizer for u in UPDATES}, averages)
    new, _ = jax.jit(make(UPDATES, averages=averages))(state, batch(), None, FROZEN)
    assert all(same(new.averages["fake_before"], new.params["fake"]))


def test_projections_come_last_and_only_to_what_was_trained(both):
    state = start(UPDATES)
    halved = {name: lambda params: jax.tree.map(lambda x: x / 2, params) for name in ("online", "fake")}
    plain, _ = both(state, batch(), None, FROZEN, (True, False))
    new, _ = jax.jit(make(UPDATES, project=halved), static_argnums=4)(state, batch(), None, FROZEN, (True, False))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y / 2, rtol=1e-6), new.params["fake"], plain.params["fake"])
    assert all(same(new.params["online"], state.params["online"])) and all(same(new.averages, plain.averages))


@pytest.mark.slow
@pytest.mark.multidevice
def test_killed_and_resumed_trainings_of_two_sets_repeat_every_bit_on_one_device_and_on_eight(tmp_path):
    script, rows = pathlib.Path(__file__).parent / "two_sets.py", {}
    for devices in (1, 8):
        whole = json.loads(program.execute([sys.executable, script, tmp_path / f"whole{devices}", "11"],
                                           devices).stdout)
        assert whole["devices"] == devices
        with pytest.raises((AssertionError, subprocess.CalledProcessError)):
            program.execute([sys.executable, script, tmp_path / f"killed{devices}", "11", "4"], devices)
        again = json.loads(program.execute([sys.executable, script, tmp_path / f"killed{devices}", "11"],
                                           devices).stdout)
        assert again["digest"] == whole["digest"]
        assert again["rows"] == whole["rows"][-len(again["rows"]):] and len(again["rows"]) >= 2
        assert {"loss/online", "grad_norm/online", "learning_rate/online"} <= set(whole["rows"][0])
        rows[devices] = whole
    np.testing.assert_allclose(rows[8]["params"], rows[1]["params"], rtol=1e-4)
    np.testing.assert_allclose(rows[8]["rows"][-1]["loss"], rows[1]["rows"][-1]["loss"], rtol=1e-4)


def test_averages_follow_what_an_optimizer_evaluates():
    free = optimizer.schedule_free(optax.constant_schedule(0.05), lambda params: jax.tree.map(lambda x: False, params))
    updates = [UPDATES[0], Update(loss=student, optimizer=free)]
    averages = {"target": Average(rule=Copy(every=1))}
    state = init_state(init(), {u.trains: u.optimizer for u in updates}, averages)
    compiled = jax.jit(make(updates, averages=averages))
    for k in range(3):
        state, _ = compiled(state, batch(k), None, FROZEN)
    expected = free.evaluated(state.opt_state["online"], state.params["online"])
    for name, value in state.averages["target"].items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)
        assert abs(value - state.params["online"][name]) > 1e-5
