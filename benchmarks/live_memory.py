"""Peak memory of a training step, counted without a GPU: the bytes of all live tensors, without computing them.

PyTorch's fake tensors have shapes and types but no content, so a step for a 40 GB card is counted in seconds on any
machine. Included are weights, optimizer, batch, activations and gradients, with activations in 16 bits as under
nnU-Net's autocast. Not included are cuDNN's workspaces, fragmentation, and the CUDA context.
"""

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from nnunet_dg.extractors.memory import LiveMemory


def _make_fake(network: torch.nn.Module, fake: FakeTensorMode) -> None:
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            replacement = torch.nn.Parameter(fake.from_tensor(parameter.detach()), parameter.requires_grad)
            setattr(module, name, replacement)
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fake.from_tensor(buffer))


def peak_live_memory(trainer: nnUNetTrainer, batch: dict[str, Any]) -> float:
    """Peak memory in GiB of two training steps: forward pass, loss, backward pass and optimizer, as in `train_step`.

    Afterwards the trainer's network consists of fake tensors.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        _make_fake(trainer.network, fake)
        optimizer, _ = trainer.configure_optimizers()
        given = tree_map_only(torch.Tensor, fake.from_tensor, batch)
        memory = LiveMemory()
        memory.count([*trainer.network.parameters(), *trainer.network.buffers(), given])
        trainer.network.train()

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast("cpu", torch.bfloat16):
                output = trainer.network(given["data"])
                loss = trainer.loss(output, given["target"])
            loss.backward()
            optimizer.step()

        with memory:
            step()
            step()
    return memory.peak / 2**30
