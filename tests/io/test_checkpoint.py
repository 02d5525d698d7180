import dataclasses
import os
import resource
import signal
import subprocess
import sys
import textwrap
import time

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import program
import pytest

from diffusion.errors import CheckpointError, DivergedError
from diffusion.io import checkpoint
from diffusion.io.checkpoint import Checkpoints
from diffusion.train import loop
from diffusion.train.averages import Average, Copy
from diffusion.train.state import init_state

CLOCK = {"step": 3, "seconds": 0.1 + 0.2, "window": {"loss": 1e-300}, "bins": [1 / 3, None]}


def params(seed=0, size=64):
    a, b = jax.random.split(jax.random.key(seed))
    return {"dense": {"kernel": jax.random.normal(a, (size, 16)), "bias": jnp.zeros(16)},
            "scale": jax.random.normal(b, (7,))}


def make_state(seed=0, size=64):
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    state = init_state({"online": params(seed, size)}, {"online": optimizer}, {"ema": Average(rule=Copy(every=1))})
    return jax.block_until_ready(state)


def make_data():
    numbers = grain.MapDataset.source(np.arange(100)).seed(1).shuffle().repeat()
    return grain.experimental.ElasticIterator(numbers, 10, grain.sharding.ShardOptions(0, 1))


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def assert_same(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def save(folder, steps, **kwargs):
    with Checkpoints(folder, **kwargs) as checkpoints:
        for step in steps:
            checkpoints.save(step, make_state(step), make_data(), {"step": step})


def restore(folder, step=None):
    return Checkpoints(folder).restore(abstract(make_state()), make_data(), step)


def victim(folder, name=None):
    """The path of a checkpoint's file: the largest (the arrays) if no name is given."""
    files = [p for p in folder.rglob("*") if p.is_file() and (name is None or p.name == name)]
    return max(files, key=lambda p: p.stat().st_size)


def test_state_data_and_clock_return_exactly(tmp_path):
    state, data = make_state(), make_data()
    next(data)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.steps() == [] and "none" in checkpoints.describe()
        checkpoints.save(3, state, data, CLOCK)
        expected = [next(data) for _ in range(3)]  # the iterator moves on after the snapshot
    fresh = make_data()
    found, clock = Checkpoints(tmp_path / "c").restore(abstract(make_state(1)), fresh)
    assert type(found) is type(state)
    assert_same(found, state)
    assert clock == CLOCK
    assert_same([next(fresh) for _ in range(3)], expected)


def test_a_save_is_a_snapshot_of_donated_arrays(tmp_path):
    state = make_state(size=200_000)
    expected = jax.tree.map(lambda x: np.array(x, copy=True), state)
    overwrite = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, make_data(), {})
        jax.block_until_ready(overwrite(overwrite(state)))
        checkpoints.wait()
        found, _ = checkpoints.restore(abstract(make_state(size=200_000)), make_data())
    assert_same(found, expected)


def test_saves_in_quick_succession_are_all_written_and_the_newest_kept(tmp_path):
    save(tmp_path, [1, 2, 10, 9, 11], keep=3)
    assert Checkpoints(tmp_path).steps() == [9, 10, 11]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["10", "11", "9"]
    save(tmp_path, [12], keep=None)
    assert Checkpoints(tmp_path).steps() == [9, 10, 11, 12]
    assert restore(tmp_path, 10)[1] == {"step": 10} and restore(tmp_path)[1] == {"step": 12}
    with pytest.raises(ValueError, match="keep"):
        Checkpoints(tmp_path, keep=0)


def test_saving_a_step_that_is_there_leaves_it(tmp_path):
    save(tmp_path, [5])
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    save(tmp_path, [5])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_one_part_alone(tmp_path):
    state = make_state()
    state = dataclasses.replace(state, averages={"ema": params(8), "long": params(9)})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, make_data(), {})
        checkpoints.wait()
        assert_same(checkpoints.restore_part("averages.ema", abstract(params())), params(8))
        scale = {"scale": params(8)["scale"]}
        assert_same(checkpoints.restore_part("averages.ema", abstract(scale)), scale)
        with pytest.raises(CheckpointError, match=r"averages\.emma\.dense\.bias is not there"):
            checkpoints.restore_part("averages.emma", abstract(params()))


def test_a_checkpoint_of_one_set_and_one_average_fills_todays_state(tmp_path):
    """As written before runs could have several: a field each for the parameters, their average and the optimizer."""
    state = make_state(3)
    before = {"step": state.step, "params": state.params["online"], "ema": params(8), "density": (),
              "opt_state": state.opt_state["online"]}
    data = make_data()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, before, data, {})
        checkpoints.wait()
        found, _ = checkpoints.restore(abstract(state), data)
        assert_same(found, dataclasses.replace(state, averages={"ema": params(8)}))
        assert_same(checkpoints.restore_part("averages.ema", abstract(params())), params(8))
        assert_same(checkpoints.restore_part("params.online", {"scale": abstract(params())["scale"]}),
                    {"scale": params(3)["scale"]})
        more = dataclasses.replace(state, averages={"ema": params(8), "long": params(9)})
        with pytest.raises(CheckpointError, match=r"averages\.long\.dense\.bias is not there"):
            checkpoints.restore(abstract(more), data)


def test_a_step_that_is_not_there_and_an_empty_folder(tmp_path):
    save(tmp_path, [5, 10])
    with pytest.raises(CheckpointError, match=r"no checkpoint of step 7 in .*5, 10"):
        restore(tmp_path, 7)
    with pytest.raises(CheckpointError, match="no checkpoint in .*train first"):
        restore(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_state_of_other_shapes_or_names_is_refused_with_the_leaves(tmp_path):
    save(tmp_path, [5])
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not fit.*online\.dense\.kernel is float32\[64, 16\] there, "
                                              r"but float32\[65, 16\] here.*and \d+ more|kernel.*Use the config"):
        checkpoints.restore(abstract(make_state(size=65)), make_data())
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=x.sharding), params())
    with pytest.raises(CheckpointError, match=r"scale is float32\[7\] there, but bfloat16\[7\] here"):
        checkpoints.restore_part("params.online", half)  # Orbax would cast without a word
    fewer = abstract({"dense": {"kernel": params()["dense"]["kernel"]}, "shift": params()["scale"]})
    with pytest.raises(CheckpointError, match="shift is not there; params.online.dense.bias is there, but not here"):
        checkpoints.restore_part("params.online", fewer)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": (flip, "truncated or altered"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "truncated or altered"),
    "deleted": (os.unlink, "is missing"),
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", [None, "_METADATA", "data.json"])
def test_damage_is_found_and_the_next_newest_works(tmp_path, kind, name, capfd):
    damage, words = DAMAGE[kind]
    save(tmp_path / "c", [5, 10, 15])
    damage(victim(tmp_path / "c" / "15", name))
    with pytest.raises(CheckpointError, match=f"{tmp_path}/c/15 is damaged: .*{words}.*Delete or move.*5, 10"):
        restore(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is damaged"):
        Checkpoints(tmp_path / "c").restore_part("averages.ema", abstract(params()))
    (tmp_path / "c" / "15").rename(tmp_path / "aside")
    state, clock = restore(tmp_path / "c")
    assert clock == {"step": 10}
    assert_same(state, make_state(10))
    assert capfd.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:coroutine", "ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's, on errors
@pytest.mark.parametrize("kind", ["truncated", "deleted"])
@pytest.mark.parametrize("name", [None, "_METADATA", "data.json", "_CHECKPOINT_METADATA"])
def test_damage_without_digests(tmp_path, kind, name, capfd):
    """As after a kill between the commit and the digests: what Orbax notices comes out as one line."""
    save(tmp_path, [5])
    (tmp_path / "5" / "SHA256SUMS").unlink()
    assert restore(tmp_path)[1] == {"step": 5}
    DAMAGE[kind][0](victim(tmp_path / "5", name))
    try:
        restore(tmp_path)
    except CheckpointError as error:
        assert "is damaged" in str(error) and "no other one" in str(error) and "\n" not in str(error)
        assert len(str(error)) < 800
    else:
        assert name == "_CHECKPOINT_METADATA"  # Orbax can do without it
    assert capfd.readouterr().err == ""


def test_digests_are_those_of_sha256sum(tmp_path):
    save(tmp_path, [5])
    checked = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path / "5", capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert len(checked.stdout.splitlines()) == sum(p.is_file() for p in (tmp_path / "5").rglob("*")) - 1


def test_leftovers_are_ignored_and_removed_by_the_next_save(tmp_path):
    save(tmp_path, [5])
    for name in ("7.orbax-checkpoint-tmp", "4.deleting"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "part").write_text("x")
    (tmp_path / "notes.txt").write_text("mine")
    assert Checkpoints(tmp_path).steps() == [5]
    assert restore(tmp_path)[1] == {"step": 5}
    assert (tmp_path / "4.deleting").exists(), "reading changes nothing: another program may be writing"
    save(tmp_path, [7])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "7", "notes.txt"]


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path, capfd):
    """A limit on the size of files makes writes fail in the same place as a full disk does."""
    save(tmp_path, [5], keep=1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path, keep=1)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        checkpoints.save(6, make_state(size=5000), make_data(), {})
        with pytest.raises(CheckpointError, match=r"step 6 could not be written to .*last good checkpoint is step 5"):
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in tmp_path.iterdir()] == ["5"], "what was half written is removed"
    assert capfd.readouterr().err == ""
    checkpoints.save(6, make_state(), make_data(), {"step": 6})  # and once there is room, it goes on
    checkpoints.wait()
    assert checkpoints.steps() == [6]


def test_the_error_of_a_background_write_comes_out_at_the_next_save_and_at_the_end(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        checkpoints = Checkpoints(tmp_path)
        checkpoints.save(6, make_state(size=5000), make_data(), {})
        with pytest.raises(CheckpointError, match="step 6 .*no earlier checkpoint"):
            checkpoints.save(7, make_state(), make_data(), {})
        with pytest.raises(CheckpointError, match="step 6"):
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(6, make_state(size=5000), make_data(), {})
        with pytest.raises(DivergedError, match="first") as caught:  # and does not hide another error
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(6, make_state(size=5000), make_data(), {})
                raise DivergedError("first")
        assert "step 6 could not be written" in caught.value.__notes__[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_file_system_that_is_full(tmp_path, capfd):
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here")
    try:
        save(tmp_path, [1])
        with pytest.raises(CheckpointError, match=r"the disk is full \(.*No space left.*\)\. The last good checkpoint "
                                                  r"is step 1\. Free some space"):
            with Checkpoints(tmp_path) as checkpoints:
                checkpoints.save(2, make_state(size=40_000), make_data(), {})
        assert Checkpoints(tmp_path).steps() == [1]
        assert restore(tmp_path)[1] == {"step": 1}
        assert capfd.readouterr().err == ""
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="step 1 could not be written.*a file is where a folder should be"):
        save(tmp_path / "file" / "checkpoints", [1])


def test_a_checkpoint_that_vanished_after_its_commit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c")
    checkpoints.save(1, make_state(), make_data(), {})
    checkpoints._pending[1].result()
    (tmp_path / "c").rename(tmp_path / "moved")
    with pytest.raises(CheckpointError, match="is not in .*moved or deleted"):
        checkpoints.wait()


def python(code, *arguments, devices=1):
    """A program that has this file's helpers."""
    head = f"import sys\nsys.path.insert(0, {os.path.dirname(__file__)!r})\nfrom test_checkpoint import *\n"
    return program.Program([sys.executable, "-c", head + textwrap.dedent(code), *arguments], devices)


@pytest.mark.slow
def test_saved_on_eight_devices_restored_on_one(tmp_path):
    process = python("""
        mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
        cut = jax.NamedSharding(mesh, jax.P("fsdp"))
        whole = jax.NamedSharding(mesh, jax.P())
        state = jax.tree.map(lambda x: jax.device_put(x, cut if x.ndim == 2 else whole), make_state(4))
        with Checkpoints(sys.argv[1]) as checkpoints:
            checkpoints.save(1, state, make_data(), {"devices": jax.device_count()})
            checkpoints.wait()
            other = jax.NamedSharding(mesh, jax.P(None, ("data", "fsdp")))
            want = jax.tree.map(lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=other if x.ndim == 2 else whole), state)
            found, _ = checkpoints.restore(want, make_data())
            assert found.params["online"]["dense"]["kernel"].sharding == other
            assert_same(found, make_state(4))
        """, tmp_path, devices=8)
    out, err = process.communicate()
    assert process.returncode == 0 and err == "", err
    state, clock = restore(tmp_path)
    assert clock == {"devices": 8} and jax.device_count() == 1
    assert_same(state, make_state(4))


def test_kill_9_in_the_middle_of_a_save_leaves_the_one_before(tmp_path):
    process = python("""
        import pathlib, signal
        folder = pathlib.Path(sys.argv[1])
        checkpoints = Checkpoints(folder)
        checkpoints.save(1, make_state(1), make_data(), {"step": 1})
        checkpoints.wait()
        checkpoints.save(2, make_state(2, size=300_000), make_data(), {"step": 2})
        while not any(p.is_file() for p in folder.glob("2.*/state/**/d/*")):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        """, tmp_path)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert any(p.name.startswith("2.") for p in tmp_path.iterdir()), "it was not killed in the middle"
    assert Checkpoints(tmp_path).steps() == [1]
    state, clock = restore(tmp_path)
    assert clock == {"step": 1}
    assert_same(state, make_state(1))
    save(tmp_path, [2])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_saved_by_two_processes_restored_by_one_and_by_two(tmp_path):
    code = """
        import jax
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(sys.argv[2], num_processes=2, process_id=int(sys.argv[3]))
        mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
        cut, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
        host = jax.tree.map(np.asarray, make_state(4))
        state = jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, cut if x.ndim == 2 else whole,
                                                                    lambda i: x[i]), host)
        with Checkpoints(sys.argv[1], keep=2) as checkpoints:
            for step in (1, 2, 3):
                checkpoints.save(step, state, make_data(), {"step": step})
            checkpoints.wait()
            assert checkpoints.steps() == [2, 3], checkpoints.steps()
            found, clock = checkpoints.restore(abstract(state), make_data())
            assert clock == {"step": 3}
            jax.tree.map(lambda x, y: [np.testing.assert_array_equal(s.data, y[s.index]) for s in x.addressable_shards],
                         found, host)
            try:
                checkpoints.restore(abstract(state), make_data(), 7)
            except CheckpointError as error:
                assert "2, 3" in str(error)
            jax.experimental.multihost_utils.sync_global_devices("before the damage")
            if jax.process_index() == 0:
                flip(victim(checkpoints.folder / "3"))
            jax.experimental.multihost_utils.sync_global_devices("after the damage")
            try:
                checkpoints.restore(abstract(state), make_data())
            except CheckpointError as error:
                assert "is damaged" in str(error)
                print("done", jax.process_index())
        """
    import socket
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [python(code, tmp_path, address, i, devices=2) for i in range(2)]
    try:
        for i, process in enumerate(processes):
            out, err = process.communicate(timeout=120)
            assert process.returncode == 0 and f"done {i}" in out, err
    finally:
        for process in processes:
            process.kill()
    state, _ = restore(tmp_path, 2)
    assert_same(state, make_state(4))


def test_what_stays_newest_every_so_often_and_best(tmp_path):
    scores = {1: 5.0, 2: 0.5, 3: 4.0, 4: float("nan"), 5: 1.0, 6: 3.0, 7: None, 8: 2.0}
    with Checkpoints(tmp_path / "c", keep=2, every=4, best=2) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, make_state(), make_data(), {}, score)
    assert checkpoints.steps() == [2, 4, 5, 7, 8]
    with Checkpoints(tmp_path / "c", keep=1, every=4, best=2) as again:  # another program knows the scores too
        again.save(9, make_state(), make_data(), {}, 0.1)
    assert again.steps() == [2, 4, 8, 9]


def test_a_run_folder_that_is_gone_is_not_made_anew(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with Checkpoints(run / "checkpoints") as checkpoints:
        checkpoints.save(1, make_state(), make_data(), {})
        checkpoints.wait()
        run.rename(tmp_path / "unmounted")
        with pytest.raises(CheckpointError, match="checkpoint of step 2 could not be written to .*Check the folder"):
            checkpoints.save(2, make_state(), make_data(), {})
    assert not run.exists() and (tmp_path / "unmounted" / "checkpoints" / "1").exists()


def test_a_disk_that_is_too_slow_is_said(tmp_path, monkeypatch):
    from diffusion.io import checkpoint
    said = []
    monkeypatch.setattr(checkpoint, "_SLOW", 0.2)
    monkeypatch.setattr(checkpoint, "_digests", lambda path: time.sleep(0.5) or "")
    with Checkpoints(tmp_path / "c", log=said.append) as checkpoints:
        checkpoints.save(1, make_state(), make_data(), {})
        checkpoints.save(2, make_state(), make_data(), {})
    assert len(said) == 1 and "step 2 has waited" in said[0] and "checkpoint of step 1" in said[0]


def test_the_newest_that_is_whole(tmp_path):
    assert Checkpoints(tmp_path / "none").restore_newest(abstract(make_state()), make_data()) is None
    save(tmp_path / "c", [1, 2, 3])
    for step in (2, 3):
        path = victim(tmp_path / "c" / str(step))
        path.write_bytes(path.read_bytes()[:-1])
    said = []
    found, clock = Checkpoints(tmp_path / "c", log=said.append).restore_newest(abstract(make_state()), make_data())
    assert clock == {"step": 1} and len(said) == 2 and "3.damaged" in said[0] and "truncated" in said[0]
    assert_same(found, make_state(1))
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["1", "2.damaged", "3.damaged"]
    with pytest.raises(CheckpointError, match="does not fit"):  # that is no damage: nothing is put aside
        Checkpoints(tmp_path / "c").restore_newest(abstract(make_state(size=8)), make_data())


def test_an_old_checkpoint_loses_its_name_before_it_is_deleted(tmp_path, monkeypatch):
    """A kill in the midst of the deletion must not leave half of it under a name that looks finished."""
    from diffusion.io import checkpoint
    deleted, rmtree = [], checkpoint.shutil.rmtree

    def noted(path, *args, **kwargs):
        deleted.append(os.path.basename(path))
        rmtree(path, *args, **kwargs)

    monkeypatch.setattr(checkpoint.shutil, "rmtree", noted)
    save(tmp_path, [1, 2], keep=1)
    assert "1.deleting" in deleted and "1" not in deleted


@pytest.mark.parametrize("progress, words", [
    ({"data": {}}, "no clock"), ({"clock": {"step": 1}}, "no place in the data"), ([], "no clock"), (None, "no clock"),
    ({"clock": {"step": "x"}, "data": {}}, "at step 'x'"), ({"clock": {"step": 2}, "data": {}}, "at step 2"),
    ({"clock": {"seconds": float("nan")}, "data": {}}, "not finite"), ({"clock": None, "data": {}}, "no clock"),
])
def test_a_progress_that_is_none_is_a_fault(progress, words):
    assert words in checkpoint._fault_of_progress(progress, 1)


@pytest.mark.parametrize("text", ['{"clock": {"step": 2}}', '{"clock": {"step": 2}, "data": {}}', "null", "["])
def test_a_checkpoint_whose_progress_was_edited_is_put_aside(tmp_path, text):
    save(tmp_path / "c", [1, 2])
    folder = tmp_path / "c" / "2"
    (folder / "SHA256SUMS").unlink()
    for file in (folder / "progress").rglob("*"):
        if file.is_file():
            file.write_text(text)
    said = []
    _, clock = Checkpoints(tmp_path / "c", log=said.append).restore_newest(abstract(make_state()), make_data())
    assert clock == {"step": 1} and "2.damaged" in said[0]


@pytest.mark.parametrize("saved", [
    {}, {"step": 3}, {"step": "x", "window": {}}, {"step": 3, "window": []}, {"step": 3, "window": {"loss": "x"}},
    {"step": 3, "window": {}, "bin_loss": None}, {"step": 3, "window": {}, "bin_loss": [1.0]},
    {"step": 3, "window": {}, "score": "x"}, {"step": 3, "window": {}, "else": 1}, {"step": -1, "window": {}}])
def test_a_clock_that_is_none(saved):
    assert loop.restored_clock({"step": 3, "window": {"steps": 2.0}}, 4).images == 12
    with pytest.raises(CheckpointError, match="clock"):
        loop.restored_clock(saved, 4)
