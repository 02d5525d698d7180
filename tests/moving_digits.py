"""MNIST's files with small made-up digits, for tests of clips."""
import struct

import numpy as np


def write_idx(folder, count=30):
    """Blobs of 20 x 20 in images of 28 x 28 with their centre of mass in the middle, as MNIST's, and labels 0 .. 9."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for split in ("train", "t10k"):
        images = np.zeros((count, 28, 28), np.uint8)
        quarter = rng.integers(60, 256, (count, 10, 10))
        images[:, 4:24, 4:24] = np.block([[quarter, quarter[..., ::-1]], [quarter[:, ::-1], quarter[:, ::-1, ::-1]]])
        labels = (np.arange(count) % 10).astype(np.uint8)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(struct.pack(">4I", 0x803, count, 28, 28) + images.tobytes())
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">2I", 0x801, count) + labels.tobytes())
    return str(folder)
