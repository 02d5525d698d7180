"""`python -m diffusion.interop.convert SRC DST`.

Writes a pretrained model as a folder that both diffusers and this project load, and checks the result.
"""
import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffusion import build, runtime
from diffusion.errors import DiffusionError
from diffusion.pipeline import DiffusionPipeline
from diffusion.pretrained import LAYOUTS

TIMES = (0, 1, 500, 999)  # in the network's convention
TOLERANCE = 1e-4          # for outputs of about 1; float32 leaves some 1e-5

_SOURCES = """\
SRC is one of
  a run folder of ours (the newest checkpoint, or --checkpoint=STEP);
  a folder in diffusers' layout, flat or with unet/ and scheduler/, with .safetensors or .bin weights;
  a name on the Hugging Face hub, such as google/ddpm-cifar10-32;
  a weight file of another project, with --layout and --settings (docs/interop.md lists the supported models).
DST is a new folder, written whole or not at all:
  model_index.json  unet/config.json  unet/diffusion_pytorch_model.safetensors  scheduler/scheduler_config.json
It is read back and compared. If torch and diffusers are installed, its output on a random input is compared with
diffusers', too.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parses the command line and converts. Returns the exit code: 1, with a message, for a user's error."""
    parser = argparse.ArgumentParser(prog="python -m diffusion.interop.convert", epilog=_SOURCES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="Writes a pretrained model in diffusers' layout.")
    parser.add_argument("source", metavar="SRC", help="the model, see below")
    parser.add_argument("destination", metavar="DST", help="the folder to write")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="a run folder's checkpoint. Default: the newest")
    parser.add_argument("--layout", choices=list(LAYOUTS), help="SRC is a weight file of this project")
    parser.add_argument("--weights", metavar="NAME", help="chooses one of several sets: an average of a run, or "
                        "posthoc:0.08, made of its snapshots; a key of a PyTorch file, such as ema; or unet or "
                        "unet_ema of a folder")
    parser.add_argument("--settings", default="", metavar="TEXT",
                        help='with --layout: the description of the model there, such as '
                             '"--image_size 64 --num_channels 128"')
    args = parser.parse_args(argv)
    try:
        return convert(args.source, args.destination, checkpoint=args.checkpoint, layout=args.layout,
                       settings=args.settings, weights=args.weights)
    except DiffusionError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def convert(source: str, destination: str, **options) -> int:
    runtime.check_devices()
    pipe = DiffusionPipeline.from_pretrained(source, **options)
    count = sum(x.size for x in jax.tree.leaves(pipe.params))
    pipe.save_pretrained(destination)
    print(f"{destination}: {count:,} parameters")
    back = DiffusionPipeline.from_pretrained(destination)
    equal = all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(pipe.params), jax.tree.leaves(back.params),
                                                     strict=True))
    print(f"read back: {'the parameters are equal bit for bit' if equal else 'THE PARAMETERS DIFFER'}")
    difference = compare(back, destination)
    if isinstance(difference, str):
        print(f"not compared with diffusers: {difference}")
        return 0 if equal else 1
    print(f"largest difference of the network's output from diffusers': {difference:.2g} (float32, random input, "
          f"t = {', '.join(map(str, TIMES))})")
    return 0 if equal and difference < TOLERANCE else 1


def compare(pipe: DiffusionPipeline, folder: str) -> float | str:
    """max |ours - diffusers'| over the output of the network, relative to its size if above 1; else the reason."""
    try:
        import torch
        from diffusers import UNet2DModel
    except ImportError:
        return "torch and diffusers are not installed"
    except Exception as error:  # from packages that do not fit each other, such as torch and torchvision
        return f"it cannot be imported ({(str(error).strip() or type(error).__name__).splitlines()[-1]})"
    c = pipe.config
    x = np.asarray(jax.random.normal(jax.random.key(0), (len(TIMES), *build.spec(c).shape)))
    labels = np.arange(len(TIMES)) % c.network.num_classes if c.network.num_classes else None
    cond = {} if labels is None else {"label": labels}
    network = build.network(c.network, build.spec(c).shape[:-1], c.data.channels * (1 + c.learned_range))
    learned = c.network.embedding == "learned"
    times = np.asarray(TIMES, np.float32) + (c.network.embedding == "fourier")  # which takes a logarithm of the time
    times = np.minimum(times, c.network.embedding_rows - 1).astype(np.int64) if learned else times
    ours = jax.jit(network.clone(dtype=jnp.float32).apply)(pipe.params, x, times, cond)
    theirs = UNet2DModel.from_pretrained(folder, subfolder="unet").eval()
    with torch.no_grad():
        out = theirs(torch.from_numpy(np.array(x.transpose(0, 3, 1, 2))), torch.from_numpy(times),
                     class_labels=None if labels is None else torch.from_numpy(labels)).sample.numpy()
    out = out.transpose(0, 2, 3, 1)
    return float(np.abs(ours - out).max() / max(1.0, np.abs(out).max()))


def start() -> int:
    """The command."""
    runtime.check_flags()
    return main()
