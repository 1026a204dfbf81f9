"""First-order meta-learning: a step of gradient descent, after which a loss is computed for the original parameters.

C. Finn, P. Abbeel, S. Levine, Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks, ICML 2017,
https://arxiv.org/abs/1703.03400, section 5.2: the first-order approximation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nnunet_dg.method import Student


def clipped(gradient: Tensor, limit: float) -> Tensor:
    """The gradient, scaled so that its Euclidean norm is at most the limit.

    Args:
        gradient: Gradient of one parameter, in any shape.
        limit: Largest norm.

    >>> clipped(torch.tensor([3.0, 4.0]), limit=1)
    tensor([0.6000, 0.8000])
    """
    return gradient * (limit / gradient.norm().clamp(min=limit))


def descended(
    parameters: dict[str, Tensor], gradients: dict[str, Tensor], step_size: float, limited: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """``parameter - step_size * limited(gradient)``, with the gradient as a constant.

    The gradient of a loss of the result is that of the parameters.

    Args:
        parameters: Parameters by name.
        gradients: Their gradients by name.
        step_size: Step size.
        limited: Function that limits the gradient of one parameter.

    >>> theta, gradient = torch.tensor([1.0, -1.0]), torch.tensor([3.0, 4.0])
    >>> descended({"a": theta}, {"a": gradient}, 0.1, lambda g: clipped(g, 1))
    {'a': tensor([ 0.9400, -1.0800])}
    """
    return {
        name: parameter - step_size * limited(gradients[name]).detach().to(parameter.dtype)
        for name, parameter in parameters.items()
    }


def gradients_of(student: Student, loss: Tensor) -> dict[str, Tensor]:
    """The gradient of a loss with respect to each trained parameter of the network, averaged over all devices.

    In float16, the gradient is that of the scaled loss, divided by the scale. Values that overflow count as 0.

    Args:
        student: Network in training, whose pass the loss is of.
        loss: Scalar.

    Returns:
        Gradients by the parameter's name in `Student.bare`, without gradient.

    >>> from types import SimpleNamespace
    >>> layer = torch.nn.Linear(1, 1, bias=False)
    >>> student = SimpleNamespace(bare=layer, scaled=lambda loss: 8 * loss, averaged=lambda value: value)
    >>> gradients_of(student, layer(torch.tensor([2.0])).sum())
    {'weight': tensor([[2.]])}
    """
    parameters = trained_parameters(student)
    found = torch.autograd.grad(student.scaled(loss), list(parameters.values()), allow_unused=True)
    full = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters.values(), found, strict=True)]
    flat = torch.cat([gradient.flatten() for gradient in full]) / student.scaled(torch.ones_like(loss))
    flat = student.averaged(flat.nan_to_num(0, 0, 0))
    parts = flat.split([parameter.numel() for parameter in parameters.values()])
    return {name: part.view_as(p) for (name, p), part in zip(parameters.items(), parts, strict=True)}


def trained_parameters(student: Student) -> dict[str, Tensor]:
    """The parameters of the network that are trained, by their name in `Student.bare`.

    >>> from types import SimpleNamespace
    >>> list(trained_parameters(SimpleNamespace(bare=torch.nn.Linear(1, 1))))
    ['weight', 'bias']
    """
    return {name: parameter for name, parameter in student.bare.named_parameters() if parameter.requires_grad}
