"""Shared fixtures, and the compiler options and compilation cache of the tests' programs."""
import gc
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
    jax.config.update("jax_numpy_rank_promotion", "raise")  # shapes of unequal length never broadcast
    gc.set_threshold(100_000, 50, 100)  # tracing makes many objects that live: 5 % faster
    keep_compilations(config)
    if config.getoption("--costs") or hasattr(config, "workeroutput"):
        config.pluginmanager.register(costs.Costs())


def keep_compilations(config):
    """Caches compilations in .pytest_cache, for all workers, programs and later runs. JAX's cache key is the program's
    operations, its options and XLA's version, so a changed program is recompiled. `--cache-clear` empties the cache."""
    if cache := getattr(config, "cache", None):  # not with -p no:cacheprovider
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.mkdir(f"jax-{runtime.cpu_digest()}")))
        os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                       "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0"}  # of the programs that tests start
        jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def pytest_collection_modifyitems(items):
    """Runs files that start programs first: they take longest, and would leave other workers idle at the end."""
    items.sort(key=lambda item: "program" not in vars(item.module))


@pytest.fixture
def x64():
    """Double precision for one test, so that an error in a formula is distinguished from rounding."""
    with jax.enable_x64(True):
        yield
