"""Restoration: the batch norm per domain, the decoder and its loss."""

import pytest
import torch

from nnunet_dg.sgcg.restoration import DomainBatchNorm, RestorationDecoder, restoration_loss


def test_each_domain_is_normalized_separately():
    torch.manual_seed(0)
    norm = DomainBatchNorm(3, num_domains=2)
    x = torch.randn(4, 3, 5, 6)
    x[2:] = 10 + 7 * x[2:]
    y = norm(x, torch.tensor([0, 0, 1, 1]))
    for group in (y[:2], y[2:]):
        torch.testing.assert_close(group.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        torch.testing.assert_close(group.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_each_domain_has_its_own_affine_map_and_all_of_them_have_a_gradient():
    norm = DomainBatchNorm(2, num_domains=3)
    with torch.no_grad():
        norm.bias[1] = 5
    x = torch.randn(2, 2, 4, 4)
    assert norm(x, torch.tensor([1, 1])).mean().item() == pytest.approx(5, abs=1e-4)
    norm(x, torch.tensor([0, 0])).square().sum().backward()
    assert norm.weight.grad is not None  # one parameter for all domains, since DDP waits for every parameter
    assert (norm.weight.grad[1:] == 0).all()


@pytest.mark.parametrize(
    ("strides", "spatial"),
    [
        ([(1, 1), (2, 2), (2, 2)], (16, 12)),
        ([(1, 1, 1), (1, 2, 2), (2, 2, 2)], (4, 16, 8)),
        ([(2, 2, 2), (2, 2, 2)], (8, 8, 8)),
    ],
)
def test_the_result_has_the_images_shape_and_the_range_of_tanh(strides, spatial):
    features = [4, 6, 8][: len(strides)]
    decoder = RestorationDecoder(features, strides, image_channels=2, num_domains=2)
    size = [n // torch.tensor(strides).prod(0)[i].item() for i, n in enumerate(spatial)]
    restored = decoder(torch.randn(3, features[-1], *size), torch.tensor([0, 1, 0]))
    assert restored.shape == (3, 2, *spatial)
    assert restored.abs().max() <= 1


def test_each_stage_convolves_on_its_own_grid_before_it_upsamples():
    decoder = RestorationDecoder([4, 6, 8], [(1, 1), (2, 2), (1, 2)], image_channels=1, num_domains=1)
    grids = []
    for convolution in [*decoder.convolutions, decoder.to_image]:
        convolution.register_forward_hook(lambda _, inputs, output: grids.append(tuple(output.shape[1:])))
    decoder(torch.randn(2, 8, 4, 3), torch.tensor([0, 0]))
    assert grids == [(6, 4, 3), (4, 4, 6), (4, 8, 12), (1, 8, 12)]


def test_equals_a_naive_implementation():
    torch.manual_seed(0)
    decoder = RestorationDecoder([4, 8], [(1, 1), (2, 2)], image_channels=1, num_domains=2)
    x, domains = torch.randn(3, 8, 4, 4), torch.tensor([0, 1, 0])
    expected = x
    for convolution, scale in zip(decoder.convolutions, (2, 1), strict=True):
        expected = convolution(expected)
        normed = torch.empty_like(expected)
        for domain in (0, 1):
            group = expected[domains == domain]
            centered = group - group.mean((0, 2, 3), keepdim=True)
            normed[domains == domain] = centered / (group.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        expected = torch.nn.functional.leaky_relu(normed, 0.01)
        expected = torch.nn.functional.interpolate(expected, scale_factor=scale, mode="bilinear")
    expected = decoder.to_image(expected).tanh()
    torch.testing.assert_close(decoder(x, domains), expected, atol=1e-5, rtol=1e-4)


def test_every_parameter_gets_a_gradient_and_the_loss_decreases():
    torch.manual_seed(0)
    decoder = RestorationDecoder([4, 8], [(1, 1), (2, 2)], image_channels=1, num_domains=1)
    bottleneck = torch.randn(2, 8, 4, 4)
    image = torch.nn.functional.interpolate(bottleneck[:, :1], scale_factor=2)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = restoration_loss(decoder(bottleneck, torch.zeros(2, dtype=torch.long)), image)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert all(parameter.grad is not None for parameter in decoder.parameters())
    assert losses[-1] < losses[0] / 3


def test_loss_computed_by_hand():
    image = torch.tensor([[[[10.0, 20.0], [15.0, 20.0]]]])  # scaled: -1, 1, 0, 1
    restored = torch.tensor([[[[-1.0, 0.0], [0.0, 1.0]]]])
    assert restoration_loss(restored, image).item() == pytest.approx(1 / 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_sample_is_normalized_with_those_of_its_domain_as_by_batch_norm(dtype):
    torch.manual_seed(0)
    norm = DomainBatchNorm(5, num_domains=3).to(dtype)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = torch.randn(5, 5, 6, 4, 3, dtype=dtype).mul_(torch.rand(5, 5, 1, 1, 1)).add_(20 * torch.rand(5, 5, 1, 1, 1))
    x, domains = x.to(dtype).requires_grad_(), torch.tensor([2, 0, 2, 0, 0])
    expected = torch.empty_like(x)
    for domain in (0, 2):
        of_domain = torch.nn.functional.batch_norm(
            x[domains == domain], None, None, norm.weight[domain], norm.bias[domain], training=True
        )
        expected[domains == domain] = of_domain
    weights = torch.randn_like(x)
    parameters = (x, norm.weight, norm.bias)
    gradients = torch.autograd.grad((norm(x, domains) * weights).sum(), parameters)
    torch.testing.assert_close(norm(x, domains), expected, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad((expected * weights).sum(), parameters), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-4 if dtype == torch.float32 else 1e-10, rtol=1e-4)


@pytest.mark.parametrize("num_domains", [1, 3])
def test_half_precision_is_kept_and_a_single_voxel_is_accepted(num_domains):
    norm, domains = DomainBatchNorm(4, num_domains), torch.zeros(2, dtype=torch.long)
    x = torch.randn(2, 4, 5, 5)
    with torch.autocast("cpu", torch.float16):
        half = norm(x.half(), domains)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), norm(x, domains), atol=5e-3, rtol=5e-3)
    assert norm(torch.ones(1, 4, 1, 1), domains[:1]).abs().max() < 1e-3
