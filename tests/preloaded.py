"""The imports of program.py's server before it forks: everything that a program imports after its flags.

It does not import diffusion.main, which each program runs as its own __main__. No import may start JAX's devices or a
thread.
"""
import absl.app  # noqa: F401
import absl.flags  # noqa: F401
import ml_collections  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorboardX  # noqa: F401

import diffusion.build  # noqa: F401
import diffusion.io.evaluation_plots  # noqa: F401
import diffusion.io.likelihood_plots  # noqa: F401
import diffusion.io.plots  # noqa: F401
import diffusion.io.solver_plots  # noqa: F401
import diffusion.parallel.hosts  # noqa: F401
import diffusion.pretrained  # noqa: F401
import diffusion.programs.evaluation  # noqa: F401
import diffusion.programs.metrics  # noqa: F401
import diffusion.tasks  # noqa: F401
import diffusion.train.loop  # noqa: F401
