"""MixUp: values of the specification, agreement with a naive loop, properties, gradients, and the loss of a step."""

import pytest
import torch
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from plain_student import PlainStudent, a_batch, a_step
from torch.nn import functional as F

from nnunet_dg.baselines.mixup import MixUp, mix_images, mix_losses, shifted_order
from nnunet_dg.errors import SettingsError

LOGITS = torch.tensor([[[1.0, 0.2, -0.5, 2.0], [0.0, 0.4, 0.3, -1.0]]])  # sample, class, voxel
OWN, OTHER = torch.tensor([[[0, 1, 0, 0]]]), torch.tensor([[[1, 1, 1, 0]]])


def cross_entropy(output, target):
    return F.cross_entropy(output, target[:, 0])


dice = MemoryEfficientSoftDiceLoss(torch.nn.Softmax(1), batch_dice=False, do_bg=False, smooth=1e-5, ddp=False)


def test_hand_value_of_mixed_images():
    """Example MIX-1 of the specification."""
    one, other = torch.tensor([[[1.0, 0, 2, -1]]]), torch.tensor([[[0.0, 1, 0, 3]]])
    torch.testing.assert_close(mix_images(one, other, 0.3), torch.tensor([[[0.3, 0.7, 0.6, 1.8]]]))


def test_hand_values_of_mixed_losses():
    """Example MIX-1: cross entropy equals that of averaged labels, and Dice does not."""
    assert float(mix_losses(cross_entropy, LOGITS, OWN, OTHER, 0.3)) == pytest.approx(0.567772, abs=1e-6)
    assert float(mix_losses(dice, LOGITS, OWN, OTHER, 0.3)) == pytest.approx(-0.592663, abs=1e-6)
    soft = 0.3 * F.one_hot(OWN[:, 0]) + 0.7 * F.one_hot(OTHER[:, 0])
    soft = soft.movedim(-1, 1)
    assert soft[0, 1].tolist() == pytest.approx([0.7, 1, 0.7, 0])
    assert float(F.cross_entropy(LOGITS, soft)) == pytest.approx(0.567772, abs=1e-6)
    assert float(dice(LOGITS, soft)) == pytest.approx(-0.617302, abs=1e-6)


def test_a_share_of_one_or_equal_partners_change_nothing():
    torch.manual_seed(0)
    image, other = torch.randn(2, 2, 1, 4, 4)
    assert torch.equal(mix_images(image, other, 1.0), image)
    torch.testing.assert_close(mix_images(image, image, 0.3), image)
    torch.testing.assert_close(mix_losses(dice, LOGITS, OWN, OWN, 0.3), dice(LOGITS, OWN))


def test_the_gradient_is_the_weighted_sum_of_both():
    logits = LOGITS.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mix_losses(cross_entropy, x, OWN, OTHER, 0.3), (logits,))
    mixed, own, other = (
        torch.autograd.grad(loss, logits)[0]
        for loss in (
            mix_losses(cross_entropy, logits, OWN, OTHER, 0.3),
            cross_entropy(logits, OWN),
            cross_entropy(logits, OTHER),
        )
    )
    torch.testing.assert_close(mixed, 0.3 * own + 0.7 * other)


@pytest.mark.parametrize("samples", [2, 3, 5])
def test_all_samples_are_partners_once_and_never_of_themselves(samples):
    torch.manual_seed(0)
    orders = {tuple(shifted_order(samples).tolist()) for _ in range(100)}
    assert len(orders) == samples - 1
    for order in orders:
        assert sorted(order) == list(range(samples))
        assert all(partner != sample for sample, partner in enumerate(order))


def test_a_single_sample_is_its_own_partner():
    assert shifted_order(1).tolist() == [0]


TARGETS = {
    "labels": ({}, lambda shape: torch.randint(2, (3, 1, *shape))),
    "ignored voxels": ({"ignore": 2}, lambda shape: torch.randint(3, (3, 1, *shape))),
    "regions": ({"regions": True}, lambda shape: torch.randint(2, (3, 2, *shape))),
    "regions and ignored voxels": ({"regions": True, "ignore": 2}, lambda shape: torch.randint(2, (3, 3, *shape))),
}


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("dims", [2, 3])
def test_a_step_agrees_with_a_loop_over_samples(kind, dims):
    """Without a Dice over the batch, the loss of each kind of labels is the mean over pairs of samples."""
    settings, make = TARGETS[kind]
    student = PlainStudent(dims, rest=1, **settings)
    torch.manual_seed(1)
    shape = (5, 4, 3)[:dims]
    data, target = torch.randn(3, 2, *shape), make(shape)
    training = MixUp(p=1.0).training_module(student)
    batch, terms = a_step(training, student, a_batch(data, target, channels=1))
    share = training.share
    assert 0 < share < 1
    (order,) = (
        order
        for order in ([1, 2, 0], [2, 0, 1])
        if torch.allclose(batch.data, share * data + (1 - share) * data[order], atol=1e-6)
    )
    output = student.network(batch.data)
    own = student.loss(output, target)
    other = student.loss(output, torch.stack([target[i] for i in order]))
    torch.testing.assert_close(terms["segmentation"], share * own + (1 - share) * other)
    assert student.passes[0] is batch.data
    assert batch.target is target  # labels are not averaged


def test_all_resolutions_of_deep_supervision_have_the_partners_target():
    student = PlainStudent()
    target = [torch.randint(2, (2, 1, n, n)) for n in (4, 2)]
    student.loss = lambda output, scales: sum(scale.float().mean() for scale in scales) * output.mean()
    training = MixUp(p=1.0).training_module(student)
    training.augment(a_batch(torch.randn(2, 1, 4, 4), target))
    assert all(torch.equal(mixed, own.flip(0)) for mixed, own in zip(training.partner, target, strict=True))


def test_other_batches_have_nnunets_own_loss_and_their_own_images():
    student = PlainStudent()
    data, target = torch.randn(2, 1, 4, 4), torch.randint(2, (2, 1, 4, 4))
    training = MixUp(p=0.0).training_module(student)
    for _ in range(20):
        batch = training.augment(a_batch(data, target))
        assert batch.data is data
        assert training.losses(None) == {}


def test_batches_are_mixed_with_probability_p_and_shares_from_beta():
    torch.manual_seed(0)
    training = MixUp(p=0.3, alpha=0.4).training_module(PlainStudent())
    batch = a_batch(torch.randn(2, 1, 2, 2), torch.zeros(2, 1, 2, 2))
    mixed, shares = 0, []
    for _ in range(2000):
        mixed += training.augment(batch).data is not batch.data
        shares.append(training.share)
    assert mixed / 2000 == pytest.approx(0.3, abs=0.04)
    assert torch.tensor(shares).var().item() == pytest.approx(0.25 / 1.8, abs=0.01)  # 1 / (4 (2 alpha + 1))
    assert torch.tensor(shares).mean().item() == pytest.approx(0.5, abs=0.03)


def test_partners_are_of_other_domains_if_set():
    student = PlainStudent()
    student.case_domains = {"a": 0, "b": 0, "c": 1}
    data = torch.tensor([0.0, 1, 2])[:, None, None, None].expand(3, 1, 2, 2)
    training = MixUp(p=1.0, other_domains=True).training_module(student)
    for _ in range(20):
        mixed = training.augment(a_batch(data, torch.zeros(3, 1, 2, 2))).data
        partner = (mixed - training.share * data) / (1 - training.share)
        assert partner[:2].round().eq(2).all()


def test_a_single_sample_is_mixed_with_that_of_the_step_before():
    student = PlainStudent()
    training = MixUp(p=1.0).training_module(student)
    torch.manual_seed(0)
    first, second = (a_batch(torch.randn(1, 1, 3, 3), torch.randint(2, (1, 1, 3, 3))) for _ in range(2))
    batch, terms = a_step(training, student, first)
    torch.testing.assert_close(batch.data, first.data)  # there is no earlier sample
    torch.testing.assert_close(terms["segmentation"], student.loss(student.network(first.data), first.target))
    expected, target = first.data.clone(), first.target.clone()
    first.data.zero_(), first.target.zero_()  # nnU-Net may reuse the memory of a batch
    batch, terms = a_step(training, student, second)
    share = training.share
    torch.testing.assert_close(batch.data, share * second.data + (1 - share) * expected)
    output = student.network(batch.data)
    own, other = student.loss(output, second.target), student.loss(output, target)
    torch.testing.assert_close(terms["segmentation"], share * own + (1 - share) * other)


def test_all_devices_take_the_decision_and_the_share_of_the_first():
    student = PlainStudent()
    student.agreed = lambda value: torch.tensor([0.2, 0.625]).reshape(value.shape)
    data = torch.randn(2, 1, 3, 3)
    for p, share in ((0.1, 1), (0.3, 0.625)):
        batch = MixUp(p=p).training_module(student).augment(a_batch(data, torch.zeros(2, 1, 3, 3)))
        torch.testing.assert_close(batch.data, share * data + (1 - share) * data.flip(0))


@pytest.mark.parametrize(("name", "value"), [("p", 1.5), ("p", None), ("alpha", 0), ("other_domains", 1)])
def test_bad_settings_are_refused_by_name(name, value):
    with pytest.raises(SettingsError, match=f"{name} must be .*; got {value}"):
        MixUp(**{name: value})
