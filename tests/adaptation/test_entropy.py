import math

import pytest
import torch
from torch import nn

from nnunet_dg.adaptation.entropy import divergence, entropy
from nnunet_dg.adaptation.norms import affine, only

ENT = torch.tensor([[2.0, 0.0, -1.0]], dtype=torch.float64)


def of_logits(function, logits, *arguments):
    logits = logits.clone().requires_grad_()
    value = function(logits, *arguments)
    (gradient,) = torch.autograd.grad(value, logits)
    return value.item(), gradient


@pytest.mark.parametrize(
    ("regions", "value", "gradient"),
    [
        (False, 0.524267, (-0.299058, 0.187917, 0.111141)),  # ENT-1
        (True, 1.640684, (-0.209987, 0.0, 0.196612)),  # ENT-2
    ],
)
def test_entropy_and_its_gradient_worked_out_by_hand(regions, value, gradient):
    computed, slope = of_logits(entropy, ENT, regions)
    assert computed == pytest.approx(value, abs=5e-7)
    assert slope[0].tolist() == pytest.approx(gradient, abs=5e-7)


def test_one_step_of_sgd_on_a_norms_scale_and_shift():
    """ENT-3: normalized voxels (-1, 1, 2), logits (gamma x + beta, 0)."""
    norm = nn.GroupNorm(1, 1).double()
    with torch.no_grad():
        norm.bias.fill_(0.5)
    x = torch.tensor([-1.0, 1.0, 2.0], dtype=torch.float64)

    def loss():
        logit = norm.weight * x + norm.bias
        return entropy(torch.stack([logit, torch.zeros_like(logit)])[None])

    parameters = affine(norm)
    optimizer = torch.optim.SGD(parameters.values(), lr=0.1)
    before = loss()
    before.backward()
    gradient = [norm.weight.grad.item(), norm.bias.grad.item()]
    optimizer.step()
    assert before.item() == pytest.approx(0.468811, abs=5e-7)
    assert gradient == pytest.approx([-0.23058, -0.093826], abs=5e-7)
    assert [norm.weight.item(), norm.bias.item()] == pytest.approx([1.023058, 0.509383], abs=5e-7)
    assert loss().item() == pytest.approx(0.462647, abs=5e-7)


def test_divergence_worked_out_by_hand():
    """SFB-4."""
    q, p = torch.tensor([[0.9, 0.1]], dtype=torch.float64), torch.tensor([[0.7, 0.3]], dtype=torch.float64)
    assert divergence(q.log(), p.log()).item() == pytest.approx(0.116322, abs=5e-7)
    assert divergence(q.logit()[:, :1], p.logit()[:, :1], True).item() == pytest.approx(0.116322, abs=5e-7)


def naive(q, p, regions):
    """KL(q || p) and the entropy of p by loops over voxels and outputs."""
    kl = h = 0.0
    for sample in range(q.shape[0]):
        for voxel in range(q.shape[2]):
            for k in range(q.shape[1]):
                pairs = [(q[sample, k, voxel].item(), p[sample, k, voxel].item())]
                pairs += [(1 - a, 1 - b) for a, b in pairs] if regions else []
                kl += sum(a * math.log(a / b) for a, b in pairs)
                h -= sum(b * math.log(b) for _, b in pairs)
    return kl / (q.shape[0] * q.shape[2]), h / (q.shape[0] * q.shape[2])


@pytest.mark.parametrize("regions", [False, True])
def test_agrees_with_a_loop_over_voxels(regions):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 2, 3, 5, generator=generator, dtype=torch.float64)
    q, p = (a.sigmoid(), b.sigmoid()) if regions else (a.softmax(1), b.softmax(1))
    kl, h = naive(q, p, regions)
    assert divergence(a, b, regions).item() == pytest.approx(kl)
    assert entropy(b, regions).item() == pytest.approx(h)
    assert entropy(b.reshape(2, 3, 5, 1, 1), regions).item() == pytest.approx(h)
    assert torch.autograd.gradcheck(lambda logits: entropy(logits, regions), b.clone().requires_grad_())
    assert torch.autograd.gradcheck(lambda logits: divergence(a, logits, regions), b.clone().requires_grad_())


def test_properties():
    certain, undecided = torch.tensor([[500.0, 0.0]]), torch.zeros(1, 4, 3)
    assert entropy(certain).item() == 0
    assert entropy(certain, True).item() == pytest.approx(math.log(2))  # of the second region, at 0
    assert entropy(undecided).item() == pytest.approx(math.log(4))
    assert entropy(undecided, True).item() == pytest.approx(4 * math.log(2))
    assert divergence(certain, certain).item() == 0
    labels = torch.zeros(1, 2, requires_grad=True)
    divergence(labels, torch.ones(1, 2, requires_grad=True)).backward()
    assert labels.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("regions", [False, True])
def test_extreme_logits_in_half_precision_have_finite_gradients(dtype, regions):
    logits = torch.tensor([[6e4, -6e4, 0.0], [1.0, 1.0, 1.0]], dtype=dtype)
    for function in (entropy, lambda x, r: divergence(-logits, x, r)):
        value, gradient = of_logits(function, logits, regions)
        assert math.isfinite(value)
        assert gradient.isfinite().all()


def test_only_chosen_parameters_require_a_gradient_and_flags_are_restored():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2, affine=True))
    network[0].bias.requires_grad_(False)
    with only(network, affine(network)):
        network(torch.rand(1, 1, 4, 4)).square().sum().backward()
        assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
        assert network[1].weight.grad is not None
    assert [p.requires_grad for p in network.parameters()] == [True, False, True, True]
    assert all(p.grad is None for p in network.parameters())
