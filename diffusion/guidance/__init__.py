"""Guidance, Diffusion -> Diffusion: {pair of predictions} x {rule} x {interval}, or a classifier's gradient."""
from diffusion.guidance.classifier import classifier
from diffusion.guidance.momentum import Momentum
from diffusion.guidance.pairs import autoguidance, classifier_free, condition_pair, guided, model_pair
from diffusion.guidance.rules import linear, plus_plus, projected, rescaled

__all__ = ["Momentum", "autoguidance", "classifier", "classifier_free", "condition_pair", "guided", "linear",
           "model_pair", "plus_plus", "projected", "rescaled"]
