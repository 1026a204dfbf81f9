"""Robustness of trained models and of features: corruptions, noise in weights, reliance on channels."""
