"""jax.jit for tests that run longer than they compile; the others compile by program.QUICK, as conftest.py says."""
import functools

import jax

large = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})
