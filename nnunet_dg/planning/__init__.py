"""Experiment planning: memory that methods need, and preprocessed data that plans share."""
