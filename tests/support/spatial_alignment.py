"""LRA of TinyMIG computed in space: the reference for `nnunet_dg.tinymig.spectral`, which stays among frequencies."""

import torch
from torch.nn import functional as F

EPS, ROUNDING, TINY = 1e-5, 1e-12, 1e-30


def gain(enhanced, given):
    return (variance(enhanced) / variance(given)).sqrt()


def variance(x):
    variance, mean = torch.var_mean(x, tuple(range(2, x.ndim)), correction=0, keepdim=True)
    return variance + ROUNDING * mean.square() + TINY


def scale_free(enhanced, given):
    axes = tuple(range(2, given.ndim))
    std = (given.var(axes, correction=0, keepdim=True) + EPS).sqrt()
    return (enhanced - enhanced.mean(axes, keepdim=True)) / (gain(enhanced, given) * std)


def spatial_alignment(enhance, teacher, student, scale):
    """Term and gain of one stage."""
    features = (teacher, student)
    enhanced = [enhance(feature) for feature in features]
    gains = torch.stack([gain(e, f).mean() for e, f in zip(enhanced, features, strict=True)])
    if scale == "free":
        enhanced = [scale_free(e, f) for e, f in zip(enhanced, features, strict=True)]
    return F.mse_loss(*enhanced), gains.mean()
