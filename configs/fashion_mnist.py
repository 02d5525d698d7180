"""Fashion-MNIST, 28x28, from idx files; Debian's package dataset-fashion-mnist puts them in the folder below.

    python -m diffusion.main --config=configs/fashion_mnist.py [--config.data.dir=FOLDER]

The model and its training are as in configs/mnist.py.
"""
from configs import mnist


def get_config():
    c = mnist.get_config()
    c.data.dir = "/usr/share/datasets/fashion-mnist"
    return c
