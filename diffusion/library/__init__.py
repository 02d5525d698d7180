"""The library without a config: Model, fit and draw, whose names `diffusion` exports."""
