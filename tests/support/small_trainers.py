"""Plans, batches and steps of small networks, for trainers in this process."""

import copy

import numpy as np
import torch
from on_noise import plans

CPU = torch.device("cpu")


def planned(dims=3, channels=1, samples=2):
    """Plans of a small network."""
    content = copy.deepcopy(plans(16, samples).plans)
    configuration = content["configurations"].pop("3d_fullres")
    network = configuration["architecture"]["arch_kwargs"]
    network["features_per_stage"] = [4, 8, 16]
    configuration |= {
        "patch_size": [16] * dims,
        "spacing": [1.0] * dims,
        "normalization_schemes": ["ZScoreNormalization"] * channels,
        "use_mask_for_norm": [False] * channels,
    }
    if dims == 2:
        network |= {"kernel_sizes": [[3, 3]] * 3, "strides": [[1, 1], [2, 2], [2, 2]]}
        network |= {
            "conv_op": "torch.nn.modules.conv.Conv2d",
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        }
    content["configurations"]["2d" if dims == 2 else "3d_fullres"] = configuration
    return content


def batch(trainer, seed=0, constant=False):
    """Noise and random targets of the dataset's kind, at every scale of deep supervision, or without it at one."""
    rng = torch.Generator().manual_seed(seed)
    configuration, labels = trainer.configuration_manager, trainer.label_manager
    samples, patch = configuration.batch_size, configuration.patch_size
    targets = []
    scales = trainer._get_deep_supervision_scales()
    for scale in scales or [[1] * len(patch)]:
        shape = [round(size * part) for size, part in zip(patch, scale, strict=True)]
        channels = 1
        if labels.has_regions:
            channels = len(labels.foreground_regions)
        high = 2 if labels.has_regions else 4 if labels.has_ignore_label else 3
        targets.append(torch.randint(0, high, (samples, channels, *shape), generator=rng).to(torch.int16))
    data = torch.randn(samples, len(configuration.normalization_schemes), *patch, generator=rng)
    data = torch.full_like(data, 0.5) if constant else data
    targets = targets if scales else targets[0]
    return {"data": data, "target": targets, "keys": [np.str_(f"case_{i % 2}") for i in range(samples)]}


def step(trainer, content, seed=0):
    torch.manual_seed(seed)
    trainer.network.train()
    trainer.auxiliary.train()
    return trainer.train_step(content)
