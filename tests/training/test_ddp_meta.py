"""FedDG and SAML in two processes, on CPU with gloo: gradients equal those of one process with the whole batch."""

import json

import torch
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from on_noise import initialized
from small_trainers import CPU, planned
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from nnunet_dg.host import unwrap
from nnunet_dg.training.catalog import METHODS
from nnunet_dg.training.train_step import loss_terms, on_device
from nnunet_dg.training.trainer import MethodsTrainer

PROCESSES = 2
DOMAINS = {"feddg": ("a", "b"), "saml": ("a", "b", "c")}
VARIANTS = [(method, batch_dice) for method in DOMAINS for batch_dice in (False, True)]


def trainer_of(method, batch_dice, two):
    """A trainer of one method in double precision, with nnU-Net's ``batch_dice``; ``two``: in one of two processes."""

    class Trainer(MethodsTrainer):
        methods = (METHODS[method](),)

        def initialize(self):
            self.device = CPU  # nnU-Net uses CUDA in several processes
            super().initialize()

    content = planned()
    content["configurations"]["3d_fullres"]["batch_size"] = 2 * len(DOMAINS[method])
    content["configurations"]["3d_fullres"]["batch_dice"] = batch_dice
    torch.manual_seed(0)
    trainer = initialized(Trainer, content, CPU)
    assert trainer.is_ddp == two
    trainer.network.train()
    trainer.auxiliary.train()
    trainer.auxiliary[method].double()
    trainer.network.double()
    trainer.loss.weight_factors = (0.7, 0.3)  # nnU-Net's depend on the number of processes
    unwrapped = unwrap(trainer.auxiliary[method])
    unwrapped.mix = lambda batch: batch.with_images(batch.images.flip(2))  # FedDG's partners depend on the process
    return trainer


def gradients(trainer, content):
    """The gradients of the network and of the training module, by name."""
    torch.manual_seed(3)
    weights = trainer.term_weights()
    terms = loss_terms(trainer, on_device(trainer, content))
    assert terms.keys() == weights.keys()
    assert all(value != 0 for value in terms.values()), terms
    sum(weight * terms[name] for name, weight in weights.items()).backward()
    assert all(parameter.is_leaf for parameter in trainer.network.parameters())  # the original ones are back
    modules = {"network": trainer.network, **trainer.auxiliary}
    return {
        f"{part}.{name}": parameter.grad.clone()
        for part, module in modules.items()
        for name, parameter in unwrap(module).named_parameters()
    }


def content_of(method, trainer):
    """Two samples of each domain; every process gets one of each."""
    generator = torch.Generator().manual_seed(5)
    cases = [f"case_{i}" for i in range(len(DOMAINS[method]))]
    samples, patch = 2 * len(cases), (16, 16, 16)
    data = torch.rand(samples, 1, *patch, generator=generator, dtype=torch.float64)
    labels = torch.zeros(samples, 1, *patch, dtype=torch.int16)
    labels[..., 3:9, 4:10, 5:9], labels[..., 8:12, 8:12, 8:12] = 1, 2
    target = [labels[(..., *[slice(None, None, round(1 / part)) for part in scale])]
              for scale in trainer._get_deep_supervision_scales()]  # fmt: skip
    return {"data": data, "target": target, "keys": cases * 2}


def part_of(content, rank):
    half = slice(rank * len(content["keys"]) // 2, (rank + 1) * len(content["keys"]) // 2)
    return {
        "data": content["data"][half],
        "target": [t[half] for t in content["target"]],
        "keys": content["keys"][half],
    }


def process(rank, folder):
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    host.DDP = lambda network, device_ids: DistributedDataParallel(network)
    found = {}
    distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=PROCESSES)
    for method, batch_dice in VARIANTS:
        trainer = trainer_of(method, batch_dice, two=True)
        found[method, batch_dice] = gradients(trainer, part_of(content_of(method, trainer), rank))
    uneven = torch.arange(rank + 1.0, requires_grad=True)
    of_all = trainer.student.gathered(uneven)
    of_all.square().sum().backward()
    found["uneven"] = of_all.detach(), uneven.grad, trainer.student.averaged(torch.tensor(float(rank)))
    distributed.destroy_process_group()
    torch.save(found, folder / f"{rank}.pt")


def test_two_processes_give_the_gradients_of_one(tmp_path, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, str(tmp_path / name))
    folder = tmp_path / "nnUNet_preprocessed" / planned()["dataset_name"]
    data = folder / planned()["configurations"]["3d_fullres"]["data_identifier"]
    data.mkdir(parents=True)
    (data / "case_2.b2nd").touch()
    (folder / "domains.json").write_text(json.dumps({"case_0": "a", "case_1": "b", "case_2": "c"}))
    multiprocessing.spawn(process, (tmp_path,), nprocs=PROCESSES)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(PROCESSES))
    of_all, gradient, mean = second["uneven"]
    assert of_all.tolist() == first["uneven"][0].tolist() == [0, 0, 1]
    assert gradient.tolist() == [0, PROCESSES * 2]  # DDP divides it by the number of processes
    assert mean == first["uneven"][2] == 0.5
    torch.set_default_dtype(torch.float64)
    try:
        for method, batch_dice in VARIANTS:
            trainer, variant = trainer_of(method, batch_dice, two=False), (method, batch_dice)
            expected = gradients(trainer, content_of(method, trainer))
            assert expected.keys() == first[variant].keys()
            for name, gradient in expected.items():
                assert torch.equal(first[variant][name], second[variant][name])
                torch.testing.assert_close(
                    first[variant][name], gradient, rtol=1e-6, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
                )
    finally:
        torch.set_default_dtype(torch.float32)
