"""The command `python -m diffusion.metrics.train_classifier`, of the program diffusion/programs/train_classifier.py."""
from diffusion import program

if __name__ == "__main__":
    program.begin()
    from diffusion.programs import train_classifier  # after the beginning, since it imports JAX
    program.interruptible()
    program.run(train_classifier.start)
