import json
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from diffusion.errors import CheckpointError
from diffusion.io.writers import MetricsWriter, read_rows


def events(folder):
    """(tag, step, value) of all TensorBoard records; ("start", step, None) where a session drops all from a step on."""
    found = []
    for path in sorted(folder.glob("events*"), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            length = int.from_bytes(content[:8], "little")
            event = Event.FromString(content[12:12 + length])
            content = content[16 + length:]
            found += [("start", event.step, None)] if event.HasField("session_log") else []
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value if v.HasField("simple_value")]
    return found


def write(tmp_path, steps, from_step=0, **values):
    with MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb", from_step=from_step) as writer:
        for step in steps:
            writer.write({"step": step, "loss": step / 10, **values})


def test_rows_come_back_and_each_is_written_at_once(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    row = {"step": np.int32(1), "images": 128, "loss": jnp.float32(0.5), "by_noise": [0.1 + 0.2, None], "name": "a",
           "array": np.arange(2), "nested": {"x": np.float64(1 / 3)}}
    with MetricsWriter(path, tmp_path / "tb") as writer:
        writer.write(row)
        assert read_rows(path) == [{"step": 1, "images": 128, "loss": 0.5, "by_noise": [0.1 + 0.2, None], "name": "a",
                                    "array": [0, 1], "nested": {"x": 1 / 3}}]
        writer.write({"step": 2, "loss": 1.0})
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    assert events(tmp_path / "tb")[:3] == [
        ("images", 1, 128.0), ("loss", 1, 0.5), ("by_noise/0", 1, pytest.approx(0.3))]


def test_nan_and_infinity_are_null(tmp_path):
    with MetricsWriter(tmp_path / "m.jsonl", tmp_path / "tb") as writer:
        writer.write({"step": 1, "loss": float("nan"), "norm": np.float32("inf"), "bins": [1.0, -np.inf]})
    line = (tmp_path / "m.jsonl").read_text()
    assert json.loads(line, parse_constant=lambda name: pytest.fail(name)) == {
        "step": 1, "loss": None, "norm": None, "bins": [1.0, None]}


def test_a_resumed_run_replaces_the_rows_after_its_checkpoint(tmp_path):
    write(tmp_path, [1, 2, 3, 4], run=1)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')  # killed while writing
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]
    write(tmp_path, [3, 4, 5], from_step=2, run=2)
    assert [(r["step"], r["run"]) for r in read_rows(tmp_path / "metrics.jsonl")] == [
        (1, 1), (2, 1), (3, 2), (4, 2), (5, 2)]
    assert ("start", 3, None) in events(tmp_path / "tb")  # TensorBoard drops what it has from step 3 on


def test_a_torn_line_is_not_glued_to_the_next(tmp_path):
    write(tmp_path, [1])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "loss": 0.2}')  # whole, but for the end of its line
    write(tmp_path, [3], from_step=2)
    assert [r["step"] for r in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]


def test_nothing_is_rewritten_when_nothing_is_dropped(tmp_path):
    write(tmp_path, [1, 2])
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    write(tmp_path, [3], from_step=2)
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before
    assert read_rows(tmp_path / "nothing.jsonl") == []


@pytest.mark.parametrize("line", [
    "garbage", "3", '{"loss": 1}', '{"step": "x"}', '{"step": null}', '{"step": true}', '{"step": -1}', '{"step": 1.5}',
    '{"step": 1, "loss": "x"}', '{"step": 1, "images": [1]}', '{"step": 1, "loss_by_log_snr": 3}',
    '{"step": 1, "loss_by_log_snr": ["x"]}', "[" * 10**6])
def test_a_line_that_is_no_row_is_named(tmp_path, line):
    path = tmp_path / "m.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 2}\n')
    with pytest.raises(CheckpointError, match=r"Line 2 of .*m\.jsonl is not a row.*Correct or delete") as error:
        read_rows(path)
    assert len(str(error.value)) < 400
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="cannot be read: .*directory"):
        read_rows(path)


def test_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="could not be written: a file is where a folder should be"):
        MetricsWriter(tmp_path / "file" / "m.jsonl", tmp_path / "tb").write({"step": 1})
    full = MetricsWriter(tmp_path / "full.jsonl", tmp_path / "tb")
    (tmp_path / "full.jsonl").symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match="the disk is full"):
        full.write({"step": 1, "loss": 0.5})


def test_events_are_not_kept_back_until_the_end(tmp_path):
    """tensorboardX hands a row to a thread of its own: what that has taken by the next row is then on the disk."""
    with MetricsWriter(tmp_path / "metrics.jsonl", tmp_path / "tb") as writer:
        for step in range(1, 20):  # a few kB, which a buffer of 8 kB holds
            writer.write({"step": step, "loss": 0.5})
            if ("loss", 2, 0.5) in events(tmp_path / "tb"):
                return
            time.sleep(0.1)
    pytest.fail("of 19 rows the second is not there")
