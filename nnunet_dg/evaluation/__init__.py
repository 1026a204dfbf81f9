"""Evaluating segmentations: metrics per case and label, and the files in which they are stored."""
