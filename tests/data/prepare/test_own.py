"""One's own pictures are prepared once: whole or not at all, in parallel, and continued after a stop."""
import json
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffusion.data import array_records, sources
from diffusion.data.folder import folder
from diffusion.data.prepare import __main__ as program
from diffusion.data.prepare import own, writer
from diffusion.errors import DataError
from diffusion.io import sound
from diffusion.kinds.audio import audio
from diffusion.kinds.image import image
from diffusion.kinds.video import video


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for i in range(40):
        name = f"{'test' if i >= 34 else 'train'}/{'abc'[i % 3]}/{i}.png"
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9 + i % 5, 12, 3), np.uint8)).save(tmp_path / "photos" / name)
        rows.append({"file_name": name, "age": i / 2})
    (tmp_path / "photos" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "photos"


def prepare(photos, *words, name="mine"):
    return program.main([name, f"--source={photos}", f"--data_dir={photos.parent}/data", "--size=8", "--labels=folders",
                         "--columns=age", *words])


def read(photos, split="train"):
    return sources.gather_examples(source := array_records.tfds_source("mine", f"{photos.parent}/data", split),
                                   range(len(source)))


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_is_prepared_is_what_training_would_read(photos, workers, capsys):
    assert prepare(photos, f"--workers={workers}") == 0
    assert "34 train, 6 test images" in capsys.readouterr().out
    spec = image(size=8, crop="adm")
    for split, count in (("train", 34), ("test", 6)):
        raw = folder(split=split, kind=spec, embedder=None, dir=str(photos), labels="folders", columns=("age",))
        expected = sources.gather_examples(sources.Loaded(raw, spec.load), range(count))
        found = read(photos, split)
        assert found.keys() == expected.keys() == {"image", "label", "age"}
        for name in expected:
            np.testing.assert_array_equal(found[name], expected[name])
    again = folder(split="test", kind=spec, embedder=None, dir=f"{photos.parent}/data/mine/1.0.0")
    assert again.class_names == ("a", "b", "c") and len(again) == 6
    part = folder(split="train[:10]", kind=spec, embedder=None, dir=f"{photos.parent}/data/mine/1.0.0")
    assert len(part) == 10 and sources.without_labels(part)[3]["label"] == 0
    assert sources.gather_examples(part, [0, 9])["image"].shape == (2, 8, 8, 3)
    assert prepare(photos) == 0 and "already prepared" in capsys.readouterr().out


def test_a_stopped_run_continues_with_the_files_that_are_finished(photos, capsys, monkeypatch):
    png, made = writer._png, []

    def stop_at_20(picture):
        made.append(1)
        if len(made) == 20:
            raise OSError("No space left on device")
        return png(picture)
    monkeypatch.setattr(writer, "_png", stop_at_20)
    assert prepare(photos, "--workers=1") == 1 and "stopped: No space left" in capsys.readouterr().err
    assert not (photos.parent / "data" / "mine" / "1.0.0").exists()
    assert prepare(photos, "--workers=1") == 0
    assert "18 of 40 images were prepared before" in capsys.readouterr().out and len(made) == 20 + 22
    assert len(read(photos)["label"]) == 34
    assert [p.name for p in (photos.parent / "data" / "mine").iterdir() if p.name.startswith(".unf")] == []


def test_other_settings_do_not_continue(photos, monkeypatch):
    monkeypatch.setattr(writer, "write_description", lambda *_: (_ for _ in ()).throw(OSError("stopped")))
    assert prepare(photos, "--workers=1") == 1
    monkeypatch.undo()
    written = []
    monkeypatch.setattr(own, "_shard", lambda job, make=own._shard: written.append(job) or make(job))
    assert prepare(photos, "--workers=1", "--crop=box") == 0
    assert sum(len(rows) for *_, rows in written) == 40


def write_recording(path, rng):
    pytest.importorskip("soundfile")
    sound.save_wav(path, rng.integers(-9000, 9000, (rng.integers(60, 90), 1), np.int16), 8000)


def write_film(path, rng):
    frames = [Image.fromarray(rng.integers(0, 256, (12, 12), np.uint8)) for _ in range(5)]
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:])


@pytest.mark.parametrize("write, spec, words", [
    (write_recording, audio(length=64, rate=8000), ["--kind=audio", "--length=64", "--rate=8000"]),
    (write_film, video(size=(8, 4), frames=3, channels=1),
     ["--kind=video", "--size=8,4", "--frames=3", "--channels=1"]),
])
def test_sound_and_films_are_prepared(tmp_path, capsys, write, spec, words):
    rng = np.random.default_rng(0)
    for i in range(12):
        (folder_ := tmp_path / "own" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        write(folder_ / f"{i}.wav", rng)
    assert program.main(["mine", f"--source={tmp_path}/own", f"--data_dir={tmp_path}/data", "--labels=folders",
                         "--workers=1", *words]) == 0
    assert "12 train clips" in capsys.readouterr().out
    raw = folder(split="train", kind=spec, embedder=None, dir=f"{tmp_path}/own", labels="folders")
    expected = sources.gather_examples(sources.Loaded(raw, spec.load), range(12))
    for found in (array_records.tfds_source("mine", f"{tmp_path}/data", "train"),
                  folder(split="train", kind=spec, embedder=None, dir=f"{tmp_path}/data/mine/1.0.0")):
        spec.check(found, "it")
        assert found.class_names == ("a", "b")
        examples = sources.gather_examples(found, range(12))
        assert examples.keys() == expected.keys() == {spec.field, "label"}
        for name in expected:
            np.testing.assert_array_equal(examples[name], expected[name])


@pytest.mark.parametrize("encoding, content", [("bytes", bytes(7)), ("zlib", zlib.compress(bytes(9)))])
def test_a_tensor_of_another_size_is_damage(encoding, content):
    feature = SimpleNamespace(bytes_list=SimpleNamespace(value=[content]))
    with pytest.raises(DataError, match="bytes instead of 8"):
        array_records._tensor(feature, shape=(4, 1), dtype=np.dtype(np.int16), encoding=encoding)


@pytest.mark.parametrize("words, message", [
    (["--size=a"], "must be a side"), (["--size=1,2,3"], "must be a side"), (["--size=0"], "data.size"),
    (["--labels=breed"], "has no column 'breed'"), (["--channels=0"], "data.channels"),
    (["--length=8"], "--length is not for --kind=image, which has --size"),
    (["--kind=audio"], "need --length and --rate"), (["--kind=video"], "need --size and --frames"),
])
def test_wrong_flags(photos, capsys, words, message):
    assert prepare(photos, "--workers=1", *words) == 1
    assert message in capsys.readouterr().err


def test_wrong_names(photos, capsys):
    assert prepare(photos, name="My Photos") == 1
    assert "must be a name of small letters" in capsys.readouterr().err
    assert prepare(photos, name="cifar10") == 1
    assert "has its official form" in capsys.readouterr().err
