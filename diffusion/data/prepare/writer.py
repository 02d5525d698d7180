"""Writes images as array_record files in TFDS's layout, without TensorFlow."""
import contextlib
import io
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tqdm import tqdm

from diffusion.data.prepare.readers import Splits


def write(folder: pathlib.Path, splits: Splits, *, name: str, version: str, description: str, homepage: str,
          citation: str, class_names: Sequence[str], images_per_shard: int = 100_000) -> None:
    """Writes `folder`/NAME-SPLIT.array_record-00000-of-00001, ..., for each split, dataset_info.json and features.json.

    Record i is a tf.Example of id "SPLIT_i", image (PNG) and label, in the order of the arrays.
    `tfds.builder_from_directory(folder).as_data_source(split)` reads it. Raises OSError if the disk is full.
    """
    import tensorflow_datasets as tfds

    folder.mkdir(parents=True)
    shape = next(iter(splits.values()))[0].shape[1:]
    features = tfds.features.FeaturesDict({
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=shape, encoding_format="png"),
        "label": tfds.features.ClassLabel(names=list(class_names)),
    })
    template = tfds.core.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix="array_record")
    infos = []
    for split, (images, labels) in splits.items():
        parts = np.array_split(np.arange(len(images)), -(-len(images) // images_per_shard))
        num_bytes = 0
        with tqdm(total=len(images), desc=f"writing {split}", unit=" images", mininterval=1) as progress:
            for shard, part in enumerate(parts):
                with _open(folder / f"{name}-{split}.array_record-{shard:05d}-of-{len(parts):05d}") as records:
                    for i in part:
                        record = features.serialize_example(features.encode_example(
                            {"id": f"{split}_{i:05d}", "image": _png(images[i]), "label": int(labels[i])}))
                        records.write(record)
                        num_bytes += len(record)
                        progress.update()
        infos.append(tfds.core.SplitInfo(name=split, shard_lengths=[len(part) for part in parts],
                                         num_bytes=num_bytes, filename_template=template.replace(split=split)))
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, version=version, filename_template=template,
        check_data=False,  # the check of tfds needs TensorFlow
        description=description, homepage=homepage, citation=citation)


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
