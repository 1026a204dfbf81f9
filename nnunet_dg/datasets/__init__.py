"""Datasets in nnU-Net's format: domains, splits, labels, normalization."""
