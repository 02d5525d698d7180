"""Parts of one's own, one file each. What `diffusion` reads are the dicts of members."""
from own_parts.network import NETWORKS
from own_parts.schedule import PROCESSES
from own_parts.solver import SOLVERS
from own_parts.weighting import WEIGHTINGS

__all__ = ["NETWORKS", "PROCESSES", "SOLVERS", "WEIGHTINGS"]
