"""One's own data: folders, archives and tables of pictures, with their splits, labels, metadata and faults."""
import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffusion.data import entries
from diffusion.data.folder import folder
from diffusion.data.sources import Loaded, gather_examples, without_labels
from diffusion.errors import DataError, NoSplit
from diffusion.kinds.image import image

SPEC = image(size=8, channels=3, crop="adm")


def png(level, size=(8, 8)):
    file = io.BytesIO()
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(file, "PNG")
    return file.getvalue()


def written(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> bytes:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def opened(path, kind=SPEC, split="train", **keys):
    return folder(split=split, kind=kind, embedder=keys.pop("embedder", None), dir=str(path), **keys)


def levels(source, kind=SPEC):
    """The grey level of each example, and its label."""
    batch = gather_examples(Loaded(source, kind.load), range(len(source)))
    return batch["image"][:, 0, 0, 0].tolist(), batch["label"].tolist()


CLASSES = {"cat/deep/er/1.png": png(1), "cat/2.JPG.png": png(2), "dog/1.png": png(3), "ant/1.png": png(4),
           "readme.txt": b"", ".DS_Store": b"x", "__MACOSX/cat/._1.png": b"x"}


@pytest.mark.parametrize("form", ["folder", "zip", "zip of one folder", "tar", "tar of tars"])
def test_class_folders_are_labels_in_every_form(tmp_path, form):
    if form == "folder":
        path = written(tmp_path / "x", CLASSES)
    elif form == "tar of tars":  # as ImageNet is published
        inner = {f"{c}.tar": tarred(tmp_path / f"{c}.tar", {n.partition("/")[2]: x for n, x in CLASSES.items()
                                                             if n.startswith(f"{c}/")}) for c in ("cat", "dog", "ant")}
        tarred(path := tmp_path / "x.tar", inner)
    elif form == "tar":
        tarred(path := tmp_path / "x.tar", {f"./{name}": content for name, content in CLASSES.items()})
    else:
        top = "PHOTOS/" if "one" in form else ""
        path = zipped(tmp_path / "x.zip", {top + name: content for name, content in CLASSES.items()})
    source = opened(path, labels="folders")
    assert source.class_names == ("ant", "cat", "dog") and source.num_classes == 3
    assert levels(source) == ([4, 2, 1, 3], [0, 1, 1, 2])
    assert levels(without_labels(source))[1] == [0] * 4 and opened(path).num_classes == 1


def test_a_source_is_read_by_other_processes(tmp_path):
    """Grain's workers get it pickled."""
    import pickle
    path = zipped(tmp_path / "x.zip", CLASSES)
    assert levels(pickle.loads(pickle.dumps(opened(path, labels="folders")))) == ([4, 2, 1, 3], [0, 1, 1, 2])


def test_splits_are_folders_or_parts_by_a_hash_of_names(tmp_path):
    both = written(tmp_path / "a", {"train/1.png": png(1), "train/2.png": png(2), "test/1.png": png(3)})
    assert levels(opened(both))[0] == [1, 2] and levels(opened(both, split="test"))[0] == [3]
    with pytest.raises(DataError, match="has no split 'valid', but test and train"):
        opened(both, split="valid")

    names = [f"{i:03d}.png" for i in range(100)]
    many = written(tmp_path / "b", {name: png(i) for i, name in enumerate(names)})
    held, kept = (levels(opened(many, split=s))[0] for s in ("train[:20%]", "train[20%:]"))
    assert len(held) == 20 and sorted(held + kept) == list(range(100)) and held == sorted(held) != list(range(20))
    assert set(levels(opened(many, split="train[:5]"))[0]) < set(held)
    (many / "aaa.png").write_bytes(png(200))
    moved = set(levels(opened(many, split="train[:20]"))[0]) ^ set(held)
    assert len(moved) <= 2  # one more name moves at most one other across the border
    for split, message in (("test", "no folder 'test'"), ("train[", "not understood"), ("train[500:]", "no example"),
                           ("train[9:3]", "no example")):
        with pytest.raises(DataError, match=message):
            opened(many, split=split)


def test_columns_of_metadata_become_labels_and_conditions(tmp_path):
    files = {"a.png": png(1), "b/c.png": png(2), "d.png": png(3)}
    rows = [{"file_name": "d.png", "breed": "pug", "age": 3, "pose": [1, 2.5], "caption": "one"},
            {"file_name": "a.png", "breed": "lab", "age": 1, "pose": [0, 0], "caption": "three"},
            {"file_name": "b/c.png", "breed": "pug", "age": 2, "pose": [5, 6], "caption": ""}]
    path = written(tmp_path / "x", files | {"metadata.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    source = opened(path, labels="breed", columns=("age", "pose"), captions="caption", embed="mine:lengths",
                    embedder={"mine:lengths": lambda texts: np.array([[len(t)] for t in texts])}.get)
    assert levels(source) == ([1, 2, 3], [0, 1, 1]) and source.class_names == ("lab", "pug")
    batch = gather_examples(Loaded(source, SPEC.load), [2, 0])
    assert batch["age"].tolist() == [3, 1] and batch["pose"].tolist() == [[1, 2.5], [0, 0]]
    assert batch["text"].tolist() == [[3], [5]] and batch["text"].dtype == np.float32
    as_csv = "file_name,age,pose\r\n" + "".join(f'{r["file_name"]},{r["age"]},"{r["pose"]}"\r\n' for r in rows)
    files = {f"train/{n}": c for n, c in files.items()} | {"train/metadata.csv": as_csv.encode()}
    path = written(tmp_path / "y", files)
    again = opened(path, columns=("age", "pose"))
    np.testing.assert_array_equal(again.conditions["pose"], source.conditions["pose"])
    for change, message in [
        (dict(labels="race"), "has no column 'race'. It has: age, pose"),
        (dict(columns=("file_name",)), "has no column 'file_name'"),
        (dict(captions="age"), "captions names a column of texts, and config.data.embed"),
    ]:
        with pytest.raises(DataError, match=message):
            opened(path, **change)


@pytest.mark.parametrize("text, message", [
    ("file_name,age\na.png,1\n", "b.png in .* has no row in the metadata, and so have 0 other"),
    ("file_name,age\na.png,1\nb.png,old\n", "column 'age' of .* must hold a finite number"),
    ("file_name,age\na.png,1\nb.png,NaN\n", "column 'age' of .* must hold a finite number"),
    ("file_name,age\na.png,1\na.png,2\nb.png,1\n", "two rows for a.png"),
    ("name,age\na.png,1\n", "Row 1 of metadata.csv in .* has no file_name"),
    (None, "has neither metadata.jsonl nor metadata.csv"),
])
def test_metadata_that_does_not_fit(tmp_path, text, message):
    path = written(tmp_path, {"a.png": png(1), "b.png": png(2)} | ({"metadata.csv": text.encode()} if text else {}))
    with pytest.raises(DataError, match=message):
        opened(path, columns=("age",))


@pytest.mark.parametrize("files, keys, message", [
    ({}, {}, "holds no images: files that end in .png, .* It is empty"),
    ({"a.txt": b"", "b.heic": b""}, {}, "holds no images: .*It holds 1 .txt, 1 .heic"),
    ({"a/1.png": png(1), "a/2.png": png(2)}, {"labels": "folders"}, "is in no class folder"),
    ({"a/x/1.png": png(1), "a/2.png": png(2)}, {"labels": "folders"}, "is in no class folder"),
    ({"train/a/1.png": png(1), "train/a/2.png": png(2)}, {"labels": "folders"}, "has one class alone, 'a'"),
    ({"a/1.png": png(1), "2.png": png(2)}, {"labels": "folders"}, "2.png in .* is in no class folder"),
])
def test_folders_without_what_is_asked_for(tmp_path, files, keys, message):
    with pytest.raises(DataError, match=message):
        opened(written(tmp_path, files), **keys)


def test_files_that_are_left_out_are_named(tmp_path, capsys):
    opened(written(tmp_path, {"a.png": png(1), "b.heic": b"", "c.gif": b"", "d.txt": b""}))
    assert "are left out 1 .gif, 1 .heic files: images are read from .png, .jpg" in capsys.readouterr().out


def test_unreadable_files_stop_by_name_or_are_left_out(tmp_path, capsys):
    path = written(tmp_path, {"a.png": png(1), "half.png": png(2)[:45], "not.jpg": b"no picture", "z.png": png(3)})
    with pytest.raises(DataError, match="half.png"):
        levels(opened(path))
    assert levels(opened(path, skip_unreadable=True))[0] == [1, 3]
    assert "note: 2 of 4 files cannot be read and are left out" in capsys.readouterr().out
    with pytest.raises(DataError, match="None of the 1 files can be read"):
        opened(written(tmp_path / "only", {"x.png": b""}), skip_unreadable=True)


@pytest.mark.parametrize("name", ["../x.png", "/x.png", "a/../../x.png", "C:/x.png"])
def test_no_entry_of_an_archive_leaves_its_folder(tmp_path, name):
    for path in (zipped(tmp_path / "x.zip", {name: png(1)}), tmp_path / "x.tar"):
        if path.suffix == ".tar":
            tarred(path, {name: png(1)})
        with pytest.raises(DataError, match="leaves the archive's folder"):
            opened(path)


def test_archives_that_are_damaged_or_made_to_harm(tmp_path):
    whole = zipped(tmp_path / "a.zip", {"1.png": png(1)})
    (cut := tmp_path / "cut.zip").write_bytes(whole.read_bytes()[:-30])
    (changed := tmp_path / "changed.zip").write_bytes(whole.read_bytes().replace(b"IDAT", b"IDAX"))
    with zipfile.ZipFile(bomb := tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(80 * 2**20))
    tarred(tmp_path / "b.tar", {"1.png": png(1), "2.png": png(2) * 40})
    (short := tmp_path / "short.tar").write_bytes((tmp_path / "b.tar").read_bytes()[:2000])
    with tarfile.open(links := tmp_path / "links.tar", "w") as archive:
        info = tarfile.TarInfo("1.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    with tarfile.open(packed := tmp_path / "p.tar", "w:gz") as archive:
        archive.add(whole, "1.png")
    for path, message in ((cut, "cannot be read as a .zip"), (changed, "1.png in .* cannot be read, or is damaged"),
                          (bomb, "unpacks to 83,886,080 bytes from"), (short, "short.tar"), (links, "is a link"),
                          (packed, "cannot be read as a .tar")):
        with pytest.raises(DataError, match=message):
            levels(opened(path))


def test_links_are_followed_but_not_without_end(tmp_path):
    written(tmp_path / "real", {"1.png": png(1)})
    (tmp_path / "data").mkdir()
    os.symlink(tmp_path / "real", tmp_path / "data" / "linked")
    assert levels(opened(tmp_path / "data"))[0] == [1]
    os.symlink(tmp_path / "data", tmp_path / "real" / "up")
    with pytest.raises(DataError, match="links to a folder above it"):
        opened(tmp_path / "data")
    os.mkfifo(tmp_path / "real" / "pipe.png")
    (tmp_path / "real" / "up").unlink()
    with pytest.raises(DataError, match="pipe.png is a named pipe"):
        levels(opened(tmp_path / "data"))


def test_files_of_one_name_in_many_folders(tmp_path):
    path = tmp_path / "many.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(70_000):
            archive.writestr(f"{i % 7}/{i:05d}/image.png", b"x")
    source = opened(path, labels="folders")
    assert len(source) == 70_000 and source.num_classes == 7
    assert source[69_999]["file"].where.startswith("6/69999/image")


def test_arrays_and_data_sets_in_usual_layouts(tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 3), np.uint8)
    for name, arrays in {"samples": {"arr_0": images, "arr_1": np.arange(5)},
                         "ours": {"train_images": images, "train_labels": np.arange(5)}}.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        found = opened(tmp_path / f"{name}.npz")
        assert found.num_classes == 5 and levels(found) == (list(range(5)),) * 2
    np.save(tmp_path / "x.npy", images)
    part = opened(tmp_path / "x.npy", split="train[:40%]")
    assert len(part) == 2 and SPEC.load(part[0], None)["image"].shape == (8, 8, 3)


def tables(root):
    """The same three pictures in parquet, and as Hugging Face's `save_to_disk` writes them."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra tables")
    import pyarrow.parquet as pq
    feature = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": png(i), "path": None} for i in (1, 2, 3)], "label": [1, 0, 1],
                      "age": [1.5, 2, 3]}).replace_schema_metadata({"huggingface": json.dumps(feature)})
    (root / "hub" / "data").mkdir(parents=True)
    pq.write_table(table, root / "hub" / "data" / "train-00000-of-00001.parquet")
    saved = root / "saved" / "train"
    saved.mkdir(parents=True)
    (root / "saved" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (saved / "state.json").write_text('{"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}')
    with pa.ipc.new_stream(str(saved / "data-00000-of-00001.arrow"), table.schema) as writer:
        writer.write_table(table)
    return root / "hub", root / "saved"


def test_hugging_face_tables(tmp_path):
    for path in tables(tmp_path):
        source = opened(path, labels="label", columns=("age",))
        assert levels(source) == ([1, 2, 3], [1, 0, 1]) and source.class_names == ("cat", "dog")
        assert gather_examples(Loaded(source, SPEC.load), [2])["age"].tolist() == [3]
        assert len(opened(path, split="train[:1]", labels="label")) == 1 and opened(path).num_classes == 1
        assert len(opened(path, split="train[1:]")) == 2
        for keys, message in ((dict(split="test"), "has no split 'test', but train"),
                              (dict(labels="race"), "has no column 'race'. It has: image, label, age"),
                              (dict(labels="folders"), "is a table without folders")):
            with pytest.raises(DataError, match=message):
                opened(path, **keys)
    for alone in (tmp_path / "hub" / "data" / "train-00000-of-00001.parquet", tmp_path / "saved" / "train"):
        assert len(opened(alone)) == 3
        with pytest.raises(NoSplit, match="has no split 'test', but train"):
            opened(alone, split="test")
    (tmp_path / "saved" / "train" / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(DataError, match="outside its folder"):
        opened(tmp_path / "saved")


def test_entries_larger_than_an_example_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(entries, "LARGEST", 50)
    files = {"1.png": png(1)}
    tarred(tmp_path / "x.tar", files)
    for path in (written(tmp_path / "x", files), zipped(tmp_path / "x.zip", files), tmp_path / "x.tar"):
        with pytest.raises(DataError, match="more than 50 for one example"):
            levels(opened(path))
