"""Tasks beyond unconditional sampling, as solver wrappers, starting points or step tables."""
from diffusion.tasks.image_to_image import start, truncate_grid
from diffusion.tasks.inversion import Inversion, reverse_grid, slerp
from diffusion.tasks.measurements import block_mean_projection, grey_projection, pixel_projection
from diffusion.tasks.reconstruction import Reconstruction, reconstructing
from diffusion.tasks.replacement import Replacement, repaint

__all__ = ["Inversion", "Reconstruction", "Replacement", "block_mean_projection", "grey_projection", "pixel_projection",
           "reconstructing", "repaint", "reverse_grid", "slerp", "start", "truncate_grid"]
