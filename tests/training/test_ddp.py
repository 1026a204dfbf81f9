"""Training in two processes, on CPU with gloo: gradients equal those of one process with the whole batch."""

import shlex
import sys
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import entry_points

import pytest
import torch
from nnunet_host import one_case
from nnunet_model import write_model
from on_noise import plans
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_dg.dropgen import ChannelDropout, DropGenSettings
from nnunet_dg.extractors import build_extractor, load_weights
from nnunet_dg.host import unwrap

TRAIN_TOGETHER = (
    "nnUNetTrainerSgCG", "nnUNetTrainerDropGenSgCG", "nnUNetTrainerTinyMIG", "nnUNetTrainerGIN", "nnUNetTrainerMixUp",
    "nnUNetTrainerMixStyle", "nnUNetTrainerRSC",
)  # fmt: skip
SLOT_MATES = ("nnUNetTrainerMaxStyle", "nnUNetTrainerSLAug", "nnUNetTrainerGIN_IPA", "nnUNetTrainerDSBN")
TRAINERS = ("nnUNetTrainerDropGen", "nnUNetTrainerDropGen_MIND", "nnUNetTrainerDropGen_Paper")


class FixedDropout(nn.Module):
    """A `ChannelDropout` whose result for a sample does not depend on the process in which the sample is."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples

    def forward(self, z):
        torch.manual_seed(1)
        scales = ChannelDropout(0.5).train()(torch.ones(2, z.shape[1], 1, 1, 1))
        return z * scales[self.samples]


def gradients(rank, folder, trainer, settings):
    """A step in two processes with half of the batch each, then, in the first process, one with the whole batch.

    It is computed in double precision, since normalized features of random weights amplify rounding errors.
    """
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    manager = plans(16)
    manager.plans["nnunet_dg"] = {"dropgen": settings}
    configuration = manager.get_configuration("3d_fullres")
    configuration.configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 16]
    torch.manual_seed(0)
    trainer = next(e.load() for e in entry_points(group="nnunetv2.trainers") if e.name == trainer)
    network = trainer.build_network_architecture(manager, configuration, 1, 3, True)
    load_weights(network.extractor, network.settings.extractor, network.settings.weights)
    images, weights = torch.rand(2, 1, 16, 16, 16), torch.rand(2, 3, 16, 16, 16)
    network = network.double().train()
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    halves = step(DistributedDataParallel(deepcopy(network)), images, weights, slice(rank, rank + 1))
    torch.distributed.destroy_process_group()
    if rank == 0:
        torch.save(halves, folder / "2.pt")
        torch.save(step(network, images, weights, slice(0, 2)), folder / "1.pt")


def step(wrapped, images, weights, samples):
    """Gradients by name, and the extractor's frozen state, after a step with some of the samples."""
    network = unwrap(wrapped)
    network.dropout = FixedDropout(samples)
    sum(
        (output * nn.functional.interpolate(weights[samples], output.shape[2:])).square().mean()
        for output in wrapped(images[samples])
    ).backward()
    gradients = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return gradients, {k: v.clone() for k, v in network.state_dict().items() if k.startswith("extractor.")}


def assert_equal_gradients(folder, trainer, settings):
    multiprocessing.spawn(gradients, (folder, trainer, settings), nprocs=2)
    (one, frozen), (two, other_frozen) = (torch.load(folder / f"{n}.pt") for n in (1, 2))
    assert one.keys() == two.keys()
    assert not any(name.startswith("extractor.") for name in one)
    assert any(gradient.abs().max() > 1e-3 for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")
    assert frozen.keys() == other_frozen.keys()
    assert all(torch.equal(frozen[key], other_frozen[key]) for key in frozen)


@pytest.mark.matrix
@pytest.mark.capability("DDP")
@pytest.mark.parametrize("trainer", TRAINERS)
def test_two_processes_give_the_gradients_of_one(tmp_path, trainer, anatomix_weights, record_property):
    record_property("trainer", trainer)
    torch.save(anatomix_weights, tmp_path / "random.pth")
    mind = trainer.endswith("MIND")
    assert_equal_gradients(tmp_path, trainer, {} if mind else {"weights": str(tmp_path / "random.pth")})


@pytest.mark.parametrize("norm", ["InstanceNorm", "BatchNorm"])
def test_gradients_are_equal_with_and_without_batch_norm_in_the_extractor(tmp_path, norm):
    model = tmp_path / "model"
    write_model(model, norm=norm)
    settings = DropGenSettings(extractor="nnunet", weights=str(model)).completed()
    assert_equal_gradients(tmp_path, "nnUNetTrainerDropGen", asdict(settings))


def test_the_extractors_batch_norm_stays_frozen_after_nnunets_conversion_to_sync_batch_norm(tmp_path):
    """For DDP, nnU-Net converts the whole network, including the extractor."""
    write_model(tmp_path, norm="BatchNorm")
    extractor = build_extractor("nnunet", weights=tmp_path)
    x = torch.rand(2, 1, 8, 8, 8)
    before = extractor(x)
    parent = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(extractor)).train()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in parent.modules())
    torch.testing.assert_close(parent(x), before)
    assert not any(module.training for module in extractor.modules())


TRAINING = """
import sys
import torch
from nnunetv2.run.run_training import get_trainer_from_args
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from torch import distributed

wrap = host.DDP
host.DDP = lambda network, device_ids: wrap(network)  # nnU-Net passes CUDA devices
distributed.init_process_group("gloo")
rank = distributed.get_rank()
trainer = get_trainer_from_args("701", "3d_fullres", 0, sys.argv[1], "tinyPlans")
trainer.device = torch.device("cpu")
torch.manual_seed(rank)  # DDP makes the initial networks equal nevertheless
trainer.run_training()
state = trainer.network.module.state_dict()
auxiliary = trainer.optimizer.state_dict().get("nnunet_dg_auxiliary", {}).get("modules", {})
auxiliary = {  # without samples of earlier steps, which differ between processes
    name: {key: value for key, value in module.items() if isinstance(value, torch.Tensor)}
    for name, module in auxiliary.items()
}
agreed = trainer.student.agreed(torch.tensor(float(rank)))
torch.save((state, auxiliary, agreed), f"{sys.argv[2]}/{rank}.pt")
distributed.barrier()
distributed.destroy_process_group()
"""


def assert_trains_in_two_processes(host, folder, trainer):
    """Run nnU-Net's training loop with one sample per process, then predict with its command."""
    script = folder / "training.py"
    script.write_text(TRAINING)
    torchrun = f"{shlex.quote(sys.executable)} -m torch.distributed.run --standalone --nproc-per-node 2"
    host.run(f"{torchrun} {script} {trainer} {folder}", nnUNet_n_proc_DA="0")
    (network, auxiliary, agreed), (other_network, other_auxiliary, other_agreed) = (
        torch.load(folder / f"{rank}.pt") for rank in range(2)
    )
    assert agreed == other_agreed == 0  # what a process decides by chance is decided by the first one for all
    assert all(torch.equal(network[key], other_network[key]) for key in network)
    for name, state in auxiliary.items():
        for key, value in state.items():
            assert torch.equal(value, other_auxiliary[name][key]), (name, key)
    saved = torch.load(host.results(trainer) / "checkpoint_final.pth", weights_only=False)
    assert all(torch.equal(network[key], saved["network_weights"][key]) for key in network)
    assert saved["optimizer_state"].get("nnunet_dg_auxiliary", {}).get("modules", {}).keys() == auxiliary.keys()
    assert any(auxiliary.values()) == trainer.endswith(("SgCG", "TinyMIG"))
    host.predict(trainer, one_case(host, folder / "in"), folder / "out")
    assert (folder / "out" / "case_0.nii.gz").is_file()


@pytest.mark.parametrize(
    "trainer",
    [
        "Tiny_nnUNetTrainerDropGen_MIND",
        "Tiny_nnUNetTrainerSgCG",
        *(pytest.param(f"Tiny_{trainer}", marks=pytest.mark.matrix) for trainer in ("nnUNetTrainerRSC", *SLOT_MATES)),
    ],
)
def test_nnunets_training_in_two_processes(host, tmp_path, trainer):
    assert_trains_in_two_processes(host, tmp_path, trainer)


@pytest.mark.matrix
@pytest.mark.capability("DDP")
@pytest.mark.parametrize("trainer", TRAIN_TOGETHER)
def test_two_processes_train_the_same_network_and_auxiliary_modules(host, tmp_path, trainer, record_property):
    record_property("trainer", trainer)
    assert_trains_in_two_processes(host, tmp_path, f"Tiny_{trainer}")
