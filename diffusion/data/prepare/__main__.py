"""python -m diffusion.data.prepare NAME --source=PATH_OR_URL --data_dir=DIR

NAME is a published data set, whose official form is checked, or a new name for one's own pictures, sound or films. A
new published data set is a file like cifar10.py and a row in DATA_SETS.
"""
import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence

from diffusion import program
from diffusion.data.crops import CROPS, DRAWS
from diffusion.data.prepare import cifar10
from diffusion.data.prepare.data_set import DataSet, prepare
from diffusion.data.prepare.own import prepare_own
from diffusion.errors import ConfigError, DiffusionError, shown
from diffusion.families import naming_keys
from diffusion.io import pictures
from diffusion.kinds.audio import audio
from diffusion.kinds.image import image
from diffusion.kinds.video import video

KINDS = {"image": image, "audio": audio, "video": video}
# kind -> its flags, and whether each is needed
KEYS = {"image": {"size": True, "channels": False, "crop": False},
        "audio": {"length": True, "rate": True, "channels": False},
        "video": {"size": True, "frames": True, "every": False, "channels": False, "crop": False}}
GIVEN = tuple(dict.fromkeys(key for keys in KEYS.values() for key in keys))
DATA_SETS = {data_set.name: data_set for data_set in (cifar10.CIFAR10,)}

_SOURCES = """\
For one's own data, --source is anything that data.name=folder reads (docs/data.md): a folder, a .zip or .tar, a
.npz, parquet files. Pictures need --size; sound (--kind=audio) --length and --rate; films (--kind=video) --size and
--frames. These flags, --crop and --labels are as config.data's keys. Splits are the folders train and test, or all is
train. A stopped run continues where it was.

For a published data set, --source is one of
  an official archive of the data set, or the folder of its unpacked files:
{archives}
  an .npz file with the arrays train_images uint8 [N, H, W, C] and train_labels integers [N],
      and, if there is a test split, test_images and test_labels;
  a folder of images ({endings}), DIR/train/CLASS/*.png and, if there is a test split,
      DIR/test/CLASS/*.png, where CLASS is a class's name or its number from 0. Images are converted to look as in a
      viewer: turned by their EXIF orientation, transparent parts white, 16 bits scaled to 8;
  the http(s) URL of such an archive or .npz file.
Official data is recognised by its content. Other data of the same image size is accepted only with --allow_other.

The result is DIR/NAME/VERSION: array_record files, which tfds.builder_from_directory reads too. It
appears there whole or not at all: if interrupted, run the same command again.
"""


def main(argv: Sequence[str] | None = None, data_sets: Mapping[str, DataSet] = DATA_SETS) -> int:
    """Parses the command line and prepares the data set. Returns the exit code: 1, with a message, for user errors."""
    archives = "\n".join(f"      {name}: {', '.join(d.archives)}   ({d.homepage})" for name, d in data_sets.items())
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.data.prepare", formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Writes a data set to disk once, for training to read at random.",
        epilog=_SOURCES.format(archives=archives, endings=", ".join(pictures.ENDINGS)))
    parser.add_argument("name", help=f"a published data set ({', '.join(data_sets)}), or a new name for your own")
    parser.add_argument("--source", required=True, metavar="PATH_OR_URL", help="the source of the images, see below")
    parser.add_argument("--data_dir", required=True, metavar="DIR", help="the folder that holds all prepared data sets")
    parser.add_argument("--allow_other", action="store_true", help="accept images that are not the official data set")
    own = parser.add_argument_group("one's own data")
    own.add_argument("--kind", choices=list(KEYS), default="image", help="of the data (default image)")
    own.add_argument("--size", metavar="PIXELS", help="of pictures and films: a side, or HEIGHT,WIDTH")
    own.add_argument("--channels", type=int, default=None, help="1 grey, 3 colours, 4 with alpha (default 3); of sound "
                     "(default 1)")
    own.add_argument("--crop", default=None, choices=[name for name in CROPS if name not in DRAWS] + ["none"],
                     help="how pictures get the size, as config.data.crop (default adm; of films edm)")
    own.add_argument("--length", type=int, default=None, help="of clips of sound, samples")
    own.add_argument("--rate", type=int, default=None, help="of sound, Hz")
    own.add_argument("--frames", type=int, default=None, help="of clips of films")
    own.add_argument("--every", type=int, default=None, help="of a film, take every so many frames (default 1)")
    own.add_argument("--labels", default="none", help="folders, or a column of the metadata (default none)")
    own.add_argument("--columns", default="", help="columns of the metadata to keep as conditions, with commas")
    own.add_argument("--skip_unreadable", action="store_true", help="leave out files that cannot be read")
    own.add_argument("--workers", type=int, default=os.cpu_count(), help="processes (default: one for each core)")
    args = parser.parse_args(argv)
    try:
        if args.name in data_sets:
            if given := [key for key in GIVEN if getattr(args, key) is not None]:
                raise ConfigError(f"--{given[0]} is for one's own data; {args.name} has its official form. Give "
                                  "another name to prepare it in another.")
            prepare(data_sets[args.name], source=args.source, data_dir=args.data_dir, allow_other=args.allow_other)
        else:
            prepare_data(args, data_sets)
    except DiffusionError as e:
        print(f"error: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted: run the same command again.", file=sys.stderr)
        return 130
    return 0


def prepare_data(args: argparse.Namespace, data_sets: Mapping[str, DataSet]) -> None:
    """Prepares one's own data by the flags. Raises ConfigError for wrong ones."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", args.name):
        raise ConfigError(f"{shown(args.name)} must be a name of small letters, digits and _, beginning with a letter. "
                          f"Published data sets: {', '.join(data_sets)}.")
    keys = {key: value for key in GIVEN if (value := getattr(args, key)) is not None}
    needed = [key for key, is_needed in KEYS[args.kind].items() if is_needed]
    if not keys.keys() >= set(needed):
        raise ConfigError(f"{args.name} is no published data set ({', '.join(data_sets)}): one's own data of "
                          f"--kind={args.kind} need --{' and --'.join(needed)}.")
    if wrong := [key for key in keys if key not in KEYS[args.kind]]:
        raise ConfigError(f"--{wrong[0]} is not for --kind={args.kind}, which has --{', --'.join(KEYS[args.kind])}.")
    if args.size:
        numbers = args.size.split(",")
        if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
            raise ConfigError(f"--size={shown(args.size)} must be a side in pixels, or HEIGHT,WIDTH.")
        keys["size"] = tuple(map(int, numbers)) * (3 - len(numbers))
    if args.kind == "image":
        keys.setdefault("crop", "adm")
    with naming_keys("data."):
        kind = KINDS[args.kind](**keys)
        prepare_own(args.name, source=args.source, data_dir=args.data_dir, kind=kind, kind_keys=keys,
                    labels=args.labels, columns=tuple(filter(None, args.columns.split(","))),
                    skip_unreadable=args.skip_unreadable, workers=args.workers)


if __name__ == "__main__":
    program.begin()
    program.interruptible()
    program.run(main)
