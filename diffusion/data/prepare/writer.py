"""Writes images, sound and clips as array_record files in TFDS's layout, without TensorFlow."""
import contextlib
import dataclasses
import io
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from diffusion.data.prepare.readers import Splits
from diffusion.io.reading import reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """The description of a prepared data set. Record i of a split is a tf.Example of id, label, the conditions and the
    data: an image as PNG, sound and clips as a tensor under zlib. `tfds.builder_from_directory(folder).as_data_source(
    split)` reads it."""
    name: str
    version: str = "1.0.0"
    description: str
    homepage: str = ""
    citation: str = ""
    class_names: tuple[str, ...]
    shape: tuple[int, ...]     # of the data
    field: str = "image"       # the entry that holds the data: image, audio or video
    dtype: Any = np.uint8      # of the data
    # name -> shape, dtype
    conditions: Mapping[str, tuple[tuple[int, ...], str]] = dataclasses.field(default_factory=dict)

    def features(self) -> Any:
        """TFDS's features."""
        import tensorflow_datasets as tfds
        return tfds.features.FeaturesDict({
            "id": tfds.features.Text(),
            self.field: tfds.features.Image(shape=self.shape, encoding_format="png") if self.field == "image" else
            tfds.features.Tensor(shape=self.shape, dtype=np.dtype(self.dtype), encoding="zlib"),
            "label": tfds.features.ClassLabel(names=list(self.class_names)),
            **{name: tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype))
               for name, (shape, dtype) in self.conditions.items()}})

    def shard(self, folder: pathlib.Path, split: str, number: int, count: int) -> pathlib.Path:
        """The path of a file of a split."""
        return folder / f"{self.name}-{split}.array_record-{number:05d}-of-{count:05d}"


def write_shard(path: pathlib.Path, features: Any, examples: Iterable[tuple[str, dict[str, Any]]]) -> int:
    """Writes (id, {"image" or another field, "label", ...}) as one file, whole or not at all. Returns its bytes of
    records. Raises OSError if the disk is full."""
    unfinished, size = path.with_name(f".{path.name}"), 0
    with _open(unfinished) as records:
        for name, example in examples:
            picture = {"image": _png(example["image"])} if "image" in example else {}
            record = features.serialize_example({**example, **picture, "id": name, "label": int(example["label"])})
            records.write(record)
            size += len(record)
    os.replace(unfinished, path)
    return size


def shard_bytes(path: pathlib.Path, count: int) -> int | None:
    """The bytes of the records of a file with `count` records; None if it is another."""
    with contextlib.suppress(Exception), reading("", ""):
        reader = ArrayRecordReader(str(path))
        try:
            if reader.num_records() == count:
                return sum(map(len, reader.read_all()))
        finally:
            reader.close()
    return None


def write_description(folder: pathlib.Path, layout: Layout, shards: Mapping[str, Sequence[tuple[int, int]]]) -> None:
    """Writes dataset_info.json and features.json. shards: split -> (records, bytes) of each file."""
    import tensorflow_datasets as tfds
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=layout.name, filetype_suffix="array_record")
    infos = [tfds.core.SplitInfo(name=split, shard_lengths=[records for records, _ in files],
                                 num_bytes=sum(size for _, size in files),
                                 filename_template=template.replace(split=split)) for split, files in shards.items()]
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=layout.features(), split_infos=infos, version=layout.version,
        filename_template=template, check_data=False,  # the check of tfds needs TensorFlow
        description=layout.description, homepage=layout.homepage, citation=layout.citation)


def write(folder: pathlib.Path, splits: Splits, layout: Layout, *, images_per_shard: int = 100_000) -> None:
    """Writes the new `folder`: images in memory, in the order of the arrays, with ids "SPLIT_i". Raises OSError if the
    disk is full."""
    folder.mkdir(parents=True)
    features, found = layout.features(), {}
    for split, (images, labels) in splits.items():
        parts = np.array_split(np.arange(len(images)), -(-len(images) // images_per_shard))
        with tqdm(total=len(images), desc=f"writing {split}", unit=" images", mininterval=1) as progress:
            def examples(part):
                for i in part:
                    yield f"{split}_{i:05d}", {"image": images[i], "label": labels[i]}  # noqa: B023
                    progress.update()  # noqa: B023
            found[split] = [(len(part), write_shard(layout.shard(folder, split, number, len(parts)), features,
                                                    examples(part))) for number, part in enumerate(parts)]
    write_description(folder, layout, found)


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[ArrayRecordWriter]:
    writer = ArrayRecordWriter(str(path), "group_size:1")  # one record per chunk, for random access
    try:
        yield writer
        writer.close()
    except RuntimeError as e:  # raised for a full disk
        raise OSError(str(e)) from e


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")
    return file.getvalue()
