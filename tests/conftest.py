"""Fixtures that all tests share, how their programs are compiled, and where these are kept."""
import os

import costs
import jax
import program
import pytest

from diffusion import runtime


def pytest_addoption(parser):
    parser.addoption("--costs", action="store_true", help="print CPU seconds and compilations by file at the end")


def pytest_configure(config):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {program.QUICK}"  # read at the first compilation
    keep_compilations(config)
    if config.getoption("--costs") or hasattr(config, "workeroutput"):
        config.pluginmanager.register(costs.Costs())


def keep_compilations(config):
    """In .pytest_cache, for all workers, programs and later runs. JAX's key of a program is its operations, its options
    and the version of XLA, so that a changed program is compiled anew. `--cache-clear` forgets them."""
    if cache := getattr(config, "cache", None):  # not with -p no:cacheprovider
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir(f"jax-{runtime.cpu_digest()}")))
        os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                       "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}  # of the programs that tests start
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_collection_modifyitems(items):
    """Files that start programs come first: they take longest, and at the end one worker would wait for the other."""
    items.sort(key=lambda item: "program" not in vars(item.module))


@pytest.fixture
def x64():
    """Double precision for the length of one test, so that a formula is told apart from its rounding."""
    with jax.enable_x64(True):
        yield
