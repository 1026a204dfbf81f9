"""Robustness of trained models and of features: image corruptions, weight noise, and reliance on input channels."""
