"""What is done with a diffusion beyond drawing from it: a solver around a solver, a start, or a table of steps."""
from diffusion.tasks.image_to_image import last_part, start
from diffusion.tasks.inversion import Inversion, slerp, upwards
from diffusion.tasks.measurements import blocks, grey, pixels
from diffusion.tasks.replacement import Replacement, repaint

__all__ = ["Inversion", "Replacement", "blocks", "grey", "last_part", "pixels", "repaint", "slerp", "start", "upwards"]
