"""Prepared data sets: array_record files in TFDS's layout, read at random without TensorFlow."""
import dataclasses
import functools
import io
import math
import pathlib
import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from diffusion.data.sources import Source
from diffusion.errors import DataError, NoSplit
from diffusion.io import pictures
from diffusion.io.reading import expanded, ordinary, reading


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayRecords:
    """Decodes serialised tf.Examples. Raises DataError that names an unreadable record.

    TFDS's own decoding walks its feature tree in Python for each example: for a 32x32 PNG this takes 5 times as long.
    """
    records: Any
    field: str                                  # the entry that holds the data: image, audio or video
    decode: Callable[[Any], np.ndarray]         # of that entry's tf.train.Feature
    num_classes: int
    folder: str
    remedy: str
    labelled: bool = True  # otherwise each label is 0
    class_names: tuple[str, ...] = ()
    conditions: Mapping[str, Callable[[Any], np.ndarray]] = dataclasses.field(default_factory=dict)  # further entries

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, i: int) -> dict[str, Any]:
        try:
            return self._decode(self.records[i])
        except Exception as e:  # Riegeli, protobuf and Pillow each raise their own
            raise DataError(f"Record {i} of {self.folder} cannot be read ({e}): the data set is damaged. "
                            f"{self.remedy}") from e

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        try:
            return [self._decode(record) for record in self.records.__getitems__(indices)]
        except Exception:
            return [self[i] for i in indices]  # raises at the unreadable record

    def _decode(self, record: bytes) -> dict[str, Any]:
        from tensorflow_datasets.proto import tf_example_pb2
        feature = tf_example_pb2.Example.FromString(record).features.feature
        label = feature["label"].int64_list.value[0] if self.labelled and "label" in feature else 0
        return {self.field: self.decode(feature[self.field]), "label": label,
                **{name: decode(feature[name]) for name, decode in self.conditions.items()}}


def tfds_source(name: str, data_dir: str, split: str) -> Source:
    """A prepared TFDS data set in array_record files, read without TensorFlow; the newest version in data_dir/name.

    split: any TFDS split, "train", "test", "train[:1000]", ... Without a feature `label` of classes, each label is 0.
    `io.pictures` converts pictures to arrays. Raises DataError if the data set is missing or its files do not match its
    dataset_info.json, and on reading a record that cannot be decoded.
    """
    data_dir = expanded(data_dir)
    remedy = f"Prepare it with: python -m diffusion.data.prepare {name} --source=PATH_OR_URL --data_dir={data_dir}"
    versions = [p.parent for p in expanded(data_dir / name).glob("*/dataset_info.json")
                if re.fullmatch(r"\d+\.\d+\.\d+", p.parent.name)]
    if not versions:
        raise DataError(f"There is no prepared data set {name!r} in {data_dir} (looked for "
                        f"{data_dir / name}/VERSION/dataset_info.json). {remedy}")
    return tfds_folder(max(versions, key=lambda p: [int(n) for n in p.name.split(".")]), split, remedy)


def tfds_folder(folder: pathlib.Path, split: str, remedy: str = "") -> Source:
    """`tfds_source` of the folder with dataset_info.json. remedy: added to errors."""
    again = f"Delete the folder, then prepare it again. {remedy}".strip()
    for path in folder.iterdir():
        if not path.is_dir():
            ordinary(path)

    import tensorflow_datasets as tfds  # takes about half a second, so only its users import it
    from array_record.python.array_record_module import ArrayRecordReader
    with reading(f"The description of the data set in {folder} cannot be read", again):
        builder = tfds.builder_from_directory(folder)
        splits, features, file_format = builder.info.splits, builder.info.features, builder.info.file_format
    if file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise DataError(f"The data set in {folder} is in {file_format and file_format.value} files; only array_record "
                        f"allows random access. {remedy}")
    field = next((name for name in ("image", "audio", "video") if name in features), None)
    if field is None or not _can_be_decoded(features[field], tfds):
        raise DataError(f"The data set in {folder} must have a feature 'image', uint8 with 1, 3 or 4 channels, or a "
                        f"tensor 'audio' or 'video' of a fixed shape. It has: "
                        f"{', '.join(f'{key} ({value})' for key, value in features.items())}.")
    if (base := re.match(r"\w*", split)[0]) and base not in splits:
        raise NoSplit(f"The data set in {folder} has no split {split!r}. Its splits: {', '.join(splits)}.")
    with reading(f"The data set in {folder} has no split {split!r}", f"Its splits: {', '.join(splits)}."):
        count, shards = splits[split].num_examples, splits[split].file_instructions
    if not count:
        raise DataError(f"Split {split!r} of the data set in {folder} is empty. Its splits: " + ", ".join(
            f"{name} ({info.num_examples:,} examples)" for name, info in splits.items()) + ".")
    for shard in shards:
        if not pathlib.Path(shard.filename).is_file():
            raise DataError(f"The file {shard.filename} is missing. {again}")
        with reading(f"{shard.filename} cannot be read", again):
            found = ArrayRecordReader(shard.filename).num_records()  # 0 if the end of the file (its index) is cut off
        if found != shard.examples_in_shard:
            raise DataError(f"{shard.filename} holds {found} readable records, but dataset_info.json lists "
                            f"{shard.examples_in_shard}: the file is truncated or damaged. {again}")
    with reading(f"Split {split!r} of the data set in {folder} cannot be opened", again):
        records = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
    if len(records) != count:
        raise DataError(f"Split {split!r} of the data set in {folder} has {len(records)} examples, but {count} were "
                        f"expected. {again}")
    label = features["label"] if "label" in features else None
    classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else None
    others = {name: _decoder(feature, tfds) for name, feature in features.items()
              if name != field and type(feature) is tfds.features.Tensor and feature.np_dtype in (np.float32, np.int32)
              and None not in feature.shape}
    source = ArrayRecords(records, field, _decoder(features[field], tfds), classes or 1, str(folder), again,
                          bool(classes), tuple(label.names) if classes else (), others)
    if None in features[field].shape:  # not declared: the size of the first image
        decode = functools.partial(_picture, channels=features[field].shape[-1], size=source[0][field].shape[:2])
        source = dataclasses.replace(source, decode=decode)
    return source


def _can_be_decoded(feature: Any, tfds: Any) -> bool:
    """Whether `_decoder` takes a feature of TFDS as data."""
    if isinstance(feature, tfds.features.Image):
        return feature.shape[-1] in (1, 3, 4) and feature.np_dtype == np.uint8
    return type(feature) is tfds.features.Tensor and feature.shape and None not in feature.shape


def _decoder(feature: Any, tfds: Any) -> Callable[[Any], np.ndarray]:
    """What makes arrays of the tf.train.Feature of an image, or of a tensor of a fixed shape."""
    if isinstance(feature, tfds.features.Image):
        size = None if None in feature.shape else feature.shape[:2]
        return functools.partial(_picture, channels=feature.shape[-1], size=size)
    return functools.partial(_tensor, shape=feature.shape, dtype=np.dtype(feature.np_dtype),
                             encoding=feature.to_json_content().encoding)


def _picture(feature: Any, *, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    return pictures.decode(io.BytesIO(feature.bytes_list.value[0]), "its image", channels=channels, size=size,
                           whose="the data set's are")


def _tensor(feature: Any, *, shape: tuple[int, ...], dtype: np.dtype, encoding: str) -> np.ndarray:
    if encoding in ("bytes", "zlib"):
        content, size = feature.bytes_list.value[0], math.prod(shape) * dtype.itemsize
        content = zlib.decompressobj().decompress(content, size + 1) if encoding == "zlib" else content
        if len(content) != size:
            raise DataError(f"it holds {len(content)} bytes instead of {size}")
        return np.frombuffer(content, dtype).reshape(shape)
    return np.array((feature.float_list if dtype.kind == "f" else feature.int64_list).value, dtype).reshape(shape)


def tfds(*, split: str,
         dataset: str = "cifar10",  # name of the prepared data set
         dir: str = "data",         # the data's folder or file; for tfds, the data_dir of the prepare program
         ) -> Source:
    """`tfds_source` with its config keys as arguments."""
    return tfds_source(dataset, dir, split)


SOURCES = {"tfds": tfds}
