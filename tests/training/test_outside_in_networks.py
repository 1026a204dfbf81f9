"""Masked data in the trainers' networks and nnU-Net's predictor: the extractor sees the minimum outside the mask."""

import io
from contextlib import redirect_stdout

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from on_noise import DATASET, plans

from nnunet_dg.trainers.nnUNetTrainerDropGen import nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND
from nnunet_dg.trainers.nnUNetTrainerDropGen_Paper import nnUNetTrainerDropGen_Paper

TRAINERS = [nnUNetTrainerDropGen, nnUNetTrainerDropGen_MIND, nnUNetTrainerDropGen_Paper]


def masked_plans():
    manager = plans(16)
    configuration = manager.plans["configurations"]["3d_fullres"]
    configuration["use_mask_for_norm"] = [True]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 6, 8]
    return manager


@pytest.fixture(params=TRAINERS, ids=lambda trainer: trainer.__name__)
def built(request, anatomix_weights):
    """A network, its plans, and a function that returns the inputs of the network and of its extractor, in pairs."""
    manager = masked_plans()
    configuration = manager.get_configuration("3d_fullres")
    torch.manual_seed(0)
    network = request.param.build_network_architecture(manager, configuration, 1, 3, False)
    if request.param is not nnUNetTrainerDropGen_MIND:
        network.extractor.load_published(anatomix_weights)
    patches, extracted = [], []
    network.register_forward_pre_hook(lambda _, inputs: patches.append(inputs[0].clone()))
    network.extractor.register_forward_pre_hook(lambda _, inputs: extracted.append(inputs[0].clone()))
    return network, manager, lambda: list(zip(patches, extracted, strict=True))


def brain(*shape):
    """A z-scored image ``(1, *shape)`` with zeros outside a mask."""
    image = torch.zeros(1, *shape)
    image[:, 4:-5, 3:-6, 4:-4] = torch.randn(1, *shape)[:, 4:-5, 3:-6, 4:-4]
    return image


def assert_black_outside(patch, extracted):
    low = patch.amin((1, 2, 3, 4), keepdim=True).expand_as(patch)
    assert torch.equal(extracted[patch == 0], low[patch == 0])
    assert torch.equal(extracted[patch != 0], patch[patch != 0])


@pytest.mark.parametrize("train", [True, False])
def test_the_extractor_sees_the_minimum_outside_in_training_and_evaluation(built, train):
    network, _, seen = built
    network.train(train)(brain(16, 16, 16)[None])
    ((patch, extracted),) = seen()
    assert_black_outside(patch, extracted)


def test_the_extractor_sees_the_minimum_outside_in_nnunets_predictor(built):
    network, manager, seen = built
    predictor = nnUNetPredictor(
        use_mirroring=True, perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False
    )
    configuration, weights = manager.get_configuration("3d_fullres"), [network.state_dict()]
    predictor.manual_initialization(network, manager, configuration, weights, DATASET, "any", (0,))
    with redirect_stdout(io.StringIO()):
        predictor.predict_logits_from_preprocessed_data(brain(20, 24, 10))  # padded, since it is smaller than the patch
    assert len(seen()) > 4  # windows and their mirror images
    for patch, extracted in seen():
        assert_black_outside(patch, extracted)
