"""A student in plain PyTorch: a 1 x 1 convolution with nnU-Net's loss, without a trainer."""

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunet_dg.method import Batch, Step, Student, full_resolution
from nnunet_dg.outside import Outside

DICE = {"batch_dice": False, "smooth": 1e-5, "ddp": False}


class PlainStudent(Student):
    """Records the data of every pass, and the lines of the log."""

    def __init__(self, dims=2, channels=1, outputs=2, regions=False, ignore=None, outside=None, rest=0):
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        torch.manual_seed(0)
        self.network = convolution(channels + rest, outputs, 1).train()
        self.image_channels, self.num_outputs, self.num_classes = channels, outputs, outputs + regions
        self.regions, self.ignore = regions, ignore
        self.outside = outside or Outside.nowhere(channels)
        self.voxel_size, self.samples_per_device = (1.0,) * dims, 2
        self.passes, self.lines, self.case_domains = [], [], {}
        if regions:
            self._loss = DC_and_BCE_loss(
                {}, DICE | {"do_bg": True}, 1, 1, ignore is not None, MemoryEfficientSoftDiceLoss
            )
        else:
            self._loss = DC_and_CE_loss(
                DICE | {"do_bg": False}, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss
            )
        self.before_each_pass(self.passes.append)

    def loss(self, output, target):
        return self._loss(full_resolution(output), full_resolution(target))

    full_resolution_loss = loss

    def classes(self, target):
        target = full_resolution(target)
        if self.regions:
            classes = target[:, : self.num_outputs].long().sum(1)
            return classes if self.ignore is None else classes.masked_fill(target[:, -1] > 0, -1)
        return (
            target[:, 0].long() if self.ignore is None else target[:, 0].long().where(target[:, 0] != self.ignore, -1)
        )

    def domains(self, keys):
        return torch.tensor([self.case_domains.get(key, 0) for key in keys])

    def agreed(self, value):
        return value

    def scaled(self, loss):
        return 1024 * loss

    def log(self, *text):
        self.lines.append(" ".join(map(str, text)))

    def module(self, stage):
        raise NotImplementedError("A single layer has no stages.")

    domain_names, training_domains, pretrained = ("",), (0,), False


def a_batch(data, target, channels=None):
    """A batch with cases "a", "b", ..."""
    keys = tuple("abcdefgh"[: len(data)])
    return Batch(data, target, keys, data.shape[1] if channels is None else channels)


def a_step(training, student, batch):
    """The augmented batch and the loss terms of one step; nnU-Net's own loss is a term, too."""
    batch = training.augment(batch)
    step = Step(student, batch, 0)
    terms = training.losses(step)
    if "segmentation" not in terms:
        terms = {"segmentation": step.segmentation(step.output)} | terms
    return batch, terms
