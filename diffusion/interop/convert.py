"""The command `python -m diffusion.interop.convert`, which runs the program diffusion/programs/convert.py."""
from diffusion import program

if __name__ == "__main__":
    program.begin()
    from diffusion.programs import convert  # after the beginning, since it imports JAX
    program.interruptible()
    program.run(convert.start)
