"""Kinds of data: what one example is, on disk, in a training step and as a result."""
