"""jax.jit for tests that run longer than they compile; conftest.py compiles all other tests with program.QUICK."""
import functools

import jax

large = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
