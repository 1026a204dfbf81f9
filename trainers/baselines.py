"""Trainers of published baselines, each with its paper's settings."""
