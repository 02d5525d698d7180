"""python -m diffusion.data.prepare NAME --source=PATH_OR_URL --data_dir=DIR

A new data set is a file like cifar10.py and a row in DATA_SETS.
"""
import argparse
import sys
from collections.abc import Mapping, Sequence

from diffusion import program
from diffusion.data.prepare import cifar10
from diffusion.data.prepare.data_set import DataSet, prepare
from diffusion.errors import DiffusionError
from diffusion.io import pictures

DATA_SETS = {data_set.name: data_set for data_set in (cifar10.CIFAR10,)}

_SOURCES = """\
--source is one of
  an official archive of the data set, or the folder of its unpacked files:
{archives}
  an .npz file with the arrays train_images uint8 [N, H, W, C] and train_labels integers [N],
      and, if there is a test split, test_images and test_labels;
  a folder of images ({endings}), DIR/train/CLASS/*.png and, if there is a test split,
      DIR/test/CLASS/*.png, where CLASS is a class's name or its number from 0. Images are converted to look as in a
      viewer: turned by their EXIF orientation, transparent parts white, 16 bits scaled to 8;
  the http(s) URL of such an archive or .npz file.
Official data is recognised by its content. Other data of the same image size is accepted only with --allow_other.

The result is DIR/NAME/VERSION: array_record files of PNG images, which tfds.builder_from_directory reads too. It
appears there whole or not at all: if interrupted, run the same command again.
"""


def main(argv: Sequence[str] | None = None, data_sets: Mapping[str, DataSet] = DATA_SETS) -> int:
    """Parses the command line and prepares the data set. Returns the exit code: 1, with a message, for user errors."""
    archives = "\n".join(f"      {name}: {', '.join(d.archives)}   ({d.homepage})" for name, d in data_sets.items())
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.data.prepare", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a data set to disk once, for training to read at random.",
        epilog=_SOURCES.format(archives=archives, endings=", ".join(pictures.ENDINGS)))
    parser.add_argument("name", choices=list(data_sets), help="the data set")
    parser.add_argument("--source", required=True, metavar="PATH_OR_URL", help="the source of the images, see below")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="the folder that holds all prepared data sets")
    parser.add_argument("--allow_other", action="store_true", help="accept images that are not the official data set")
    args = parser.parse_args(argv)
    try:
        prepare(data_sets[args.name], source=args.source, data_dir=args.data_dir, allow_other=args.allow_other)
    except DiffusionError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    program.begin()
    program.interruptible()
    program.run(main)
