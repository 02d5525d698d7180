"""Programs that measure. Each keeps freed memory, as our programs do, for all ways that it compares alike."""
import sys

from diffusion import program

if sys.argv[0] == "-m":  # a program of this package starts, and imports this file before NumPy
    program.keep_memory()
