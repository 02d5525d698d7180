"""jax.jit for tests, whose small programs cost more to compile than to run."""
import functools

import jax

QUICK = {"xla_backend_optimization_level": 0}
if jax.__version_info__ < (0, 11):  # an option that XLA does not know is an error: only tried versions get this one
    QUICK["xla_cpu_use_fusion_emitters"] = False
quick = functools.partial(jax.jit, compiler_options=QUICK)  # a third of the usual compilation
large = functools.partial(jax.jit, compiler_options=QUICK | {"xla_backend_optimization_level": 1})  # for a long run
