"""The command `python -m diffusion.metrics`, which runs the program diffusion/programs/metrics.py."""
from diffusion import program

if __name__ == "__main__":
    program.begin()
    from diffusion.programs import metrics  # after the beginning, since it imports JAX
    program.interruptible()
    program.run(metrics.start)
