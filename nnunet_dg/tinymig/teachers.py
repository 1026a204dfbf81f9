"""Teachers of TinyMIG: frozen foundation models with small trainable adapters, read at several depths.

TinyMIG: Transferring Generalization from Vision Foundation Models to Single-Domain Medical Imaging, ICML 2025,
https://proceedings.mlr.press/v267. All models have the same interface: `Teacher.features` takes a batch of images as
nnU-Net normalized them and returns one map per taught stage of the student, at most four. The frozen model is excluded
from the teacher's state dict, its parameters and DDP. It is rebuilt from its own weights file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nnunet_dg.errors import DimensionError, SettingsError
from nnunet_dg.extractors import FrozenExtractor, create_extractor, load_weights, vit
from nnunet_dg.extractors import weights as weight_files
from nnunet_dg.extractors.anatomix import VARIANTS, Anatomix
from nnunet_dg.extractors.base import SCALINGS
from nnunet_dg.extractors.synthetic import Synthetic
from nnunet_dg.extractors.synthetic_network import FEATURES, WIDTHS
from nnunet_dg.tinymig.adapters import ConvolutionalAdapter, TokenAdapter, hidden_width
from nnunet_dg.tinymig.reprogramming import MODES

if TYPE_CHECKING:
    from nnunet_dg.tinymig.teacher_settings import TeacherSettings

DEFAULT_TEACHERS = {2: "samvit_base_patch16.sa1b", 3: "anatomix"}

CONVOLUTIONAL = (*VARIANTS, "synthetic", "nnunet")  # the extractors that can teach; any other name is a ViT in timm
RANDOM_SEED = 0  # random teachers are the same in all processes and after a training resumes


class Teacher(nn.Module):
    """A frozen model with adapters parallel to its blocks, whose features are read at several depths.

    Args:
        model: Frozen model.
        run: Function from images that fit the model, ``(B, in_channels, *spatial)``, to one feature map per depth.
        widths: Number of channels of each map.
        adapters: Pairs of a module of the model and its adapter, which gets the module's input and is added to its
            output. Without adapters, the teacher has no trainable parameters.
        in_channels: Number of input channels of the model.
        repeats: Whether a single image channel is repeated in all input channels, or only fills the first.
        multiple: Divisor of the spatial sizes, per axis; sizes are also at least twice this.
        scaling: Scaling of each sample and channel: one of `SCALINGS`, or ``"timm"``, min-max followed by ``mean`` and
            ``std``; default ``"minmax"``.
        mean: Mean of the model's training images in [0, 1], per input channel, for ``"timm"``.
        std: Deviation of the model's training images in [0, 1], per input channel, for ``"timm"``.

    Attributes:
        fingerprint: Fingerprint of the frozen weights. It is in the state dict, so that a training only resumes with
            the same teacher.
        has_weights: Whether `load_teacher` has filled the frozen model.
    """

    fingerprint: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Tensor], Sequence[Tensor]],
        widths: Sequence[int],
        adapters: Sequence[tuple[nn.Module, nn.Module]],
        in_channels: int,
        repeats: bool,
        multiple: Sequence[int],
        scaling: str = "minmax",
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        self._frozen = (model.eval().requires_grad_(False),)  # in a tuple, it is not registered as a submodule
        self.run = run
        self.widths = tuple(widths)
        self.in_channels, self.repeats = in_channels, repeats
        self.scaling = scaling
        self.multiple = tuple(multiple)
        self.has_weights = False
        self.adapters = nn.ModuleList(adapter for _, adapter in adapters)
        self.register_buffer("fingerprint", torch.zeros((), dtype=torch.int64))
        shape = (1, -1, *[1] * len(self.multiple))
        self.register_buffer("mean", torch.tensor(mean).reshape(shape), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(shape), persistent=False)
        for module, adapter in adapters:
            module.register_forward_hook(
                lambda _, inputs, output, adapter=adapter: output + adapter(inputs[0], output.shape[2:])
            )

    @property
    def frozen(self) -> nn.Module:
        """The frozen model."""
        return self._frozen[0]

    def _apply(self, fn: Callable, recurse: bool = True) -> Teacher:
        self.frozen._apply(fn)  # for example, the frozen model moves to a device with the teacher
        super()._apply(fn, recurse)
        return self

    def features(self, x: Tensor) -> list[Tensor]:
        """The feature maps of ``x``, with gradients into the adapters.

        Each image channel is scaled per sample and enlarged to a size that the model accepts. A model with C input
        channels sees all channels at once; a ViT therefore treats any three channels as colors. Otherwise the model
        sees each channel separately, and the maps are averaged.

        Args:
            x: Images, ``(B, C, *spatial)``, with any range.

        Returns:
            One ``(B, widths[i], *any)`` per depth.

        Raises:
            RuntimeError: The frozen model has no weights yet.
        """
        if not self.has_weights:
            raise RuntimeError("The teacher has no weights yet: nnU-Net's run_training loads them in on_train_start.")
        size = [max(2 * m, -(-n // m) * m) for n, m in zip(x.shape[2:], self.multiple, strict=True)]
        images, channels = x.shape[:2]
        x = SCALINGS["minmax" if self.scaling == "timm" else self.scaling](x)
        if list(x.shape[2:]) != size:
            x = F.interpolate(x, size, mode=MODES[len(size)])
        if channels != self.in_channels:
            x = x.flatten(0, 1).unsqueeze(1)
            if self.repeats:
                x = x.expand(-1, self.in_channels, *size)
        maps = self.run((x - self.mean) / self.std if self.scaling == "timm" else x)
        if channels in (1, self.in_channels):
            return list(maps)
        return [m.unflatten(0, (images, channels)).mean(1) for m in maps]


def build_teacher(settings: TeacherSettings, patch_size: Sequence[int], depths: int) -> Teacher:
    """The teacher that ``settings`` name, without its weights.

    Args:
        settings: Settings, see `TeacherSettings`.
        patch_size: Patch size of the configuration, two or three sizes.
        depths: Maximum number of maps.

    Raises:
        SettingsError: The teacher is unknown, the patch is too small for it, or it does not accept the scaling.
        DimensionError: The teacher and the configuration have different dimensions.

    >>> from nnunet_dg.tinymig import TinyMIG
    >>> build_teacher(TinyMIG(teacher="random:anatomix"), patch_size=(32, 32, 32), depths=4).widths
    (16, 32, 64, 128)
    """
    dims = len(patch_size)
    name = teacher_name(settings, dims)
    scaling = settings.teacher_scaling
    if name in CONVOLUTIONAL:
        if scaling == "timm":
            raise SettingsError(
                f"teacher_scaling 'timm' is for ViTs in timm; teacher '{name}' takes {' or '.join(SCALINGS)}."
            )
        axes = dims if name == "synthetic" else None  # the others have a single number
        extractor = create_extractor(name, architecture=settings.architecture, spatial_dims=axes)
        if dims not in extractor.accepted_dims:
            raise DimensionError(_other_dimension(name, extractor.accepted_dims[0], dims))
        return _convolutional(extractor, dims, settings, depths)
    vit.check_name(name)
    if dims != 2:
        raise DimensionError(_other_dimension(name, 2, dims))
    teacher = _vit(vit.build(name, RANDOM_SEED), settings, depths)
    if any(n < m for n, m in zip(patch_size, teacher.multiple, strict=True)):
        raise SettingsError(
            f"The planned patch, {' x '.join(map(str, patch_size))}, is smaller than the patches of teacher '{name}', "
            f"{' x '.join(map(str, teacher.multiple))}. Increase patch_size in the plans, or set teacher to 'nnunet'."
        )
    return teacher


def teacher_name(settings: TeacherSettings, dims: int) -> str:
    """The name of the teacher's model, without ``random:``."""
    return (settings.teacher or DEFAULT_TEACHERS[dims]).removeprefix("random:")


def load_teacher(teacher: Teacher, settings: TeacherSettings, dims: int) -> str:
    """Load the teacher's weights from the given file, or from the published one, which is fetched once.

    Args:
        teacher: Teacher whose frozen model gets the weights.
        settings: Settings, see `TeacherSettings`.
        dims: Number of spatial axes, 2 or 3.

    Returns:
        A line for the log, which says where the weights come from.

    Raises:
        WeightsError: The file is missing, cannot be fetched, is damaged, or is of another model.
        SettingsError: The loaded checkpoint was trained with other weights.

    >>> from nnunet_dg.tinymig import TinyMIG
    >>> settings = TinyMIG(teacher="random:anatomix")
    >>> load_teacher(build_teacher(settings, (32, 32, 32), 4), settings, dims=3)
    'Teacher anatomix: random weights, as asked for; teacher_scaling minmax'
    """
    name, model = teacher_name(settings, dims), teacher.frozen
    if settings.random:
        if isinstance(model, FrozenExtractor):  # ViTs are created with random weights
            _reset(model)
        source = "random weights, as asked for"
    elif isinstance(model, FrozenExtractor):
        path = load_weights(model, name, settings.weights)
        source = f"weights from {path} ({'as set' if settings.weights else weight_files.origin(name)})"
    else:
        path = vit.load(model, name, settings.weights)
        source = f"weights from {path} ({'as set' if settings.weights else 'published file'})"
    current = fingerprint(model)
    if int(teacher.fingerprint) not in (0, current):
        raise SettingsError(
            f"This checkpoint was trained with other weights of teacher '{name}'; this training has {source}. Restore "
            f"the earlier weights, or start from the checkpoint's network with -pretrained_weights."
        )
    teacher.fingerprint.fill_(current)
    teacher.has_weights = True
    return f"Teacher {name}: {source}; teacher_scaling {teacher.scaling}"


def fingerprint(model: nn.Module) -> int:
    """A positive number that identifies the weights and buffers of a model."""
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest()[:7], "little") or 1


def _convolutional(extractor: FrozenExtractor, dims: int, settings: TeacherSettings, depths: int) -> Teacher:
    """A convolutional teacher, whose finest decoded levels are read, from fine to coarse. All levels have adapters."""
    encoder, decoder, widths, in_channels = _levels(extractor, dims)
    adapters = []
    if settings.adapts:
        pairs = zip([*encoder, *decoder], widths, strict=True)
        adapters = [_level_adapter(level, dims, width, settings.adapter_width) for level, width in pairs]
    finest = list(reversed(decoder))[:depths]
    maps: dict[nn.Module, Tensor] = {}

    def run(x: Tensor) -> list[Tensor]:
        extractor.features(x)
        return [maps.pop(level) for level in finest]

    multiple = extractor.multiple if isinstance(extractor.multiple, tuple) else (extractor.multiple,) * dims
    scaling = settings.teacher_scaling or "minmax"
    teacher = Teacher(extractor, run, widths[: -len(finest) - 1 : -1], adapters, in_channels, False, multiple, scaling)
    for level in finest:
        level.register_forward_hook(lambda level, _, output: maps.__setitem__(level, output))
    return teacher


def _levels(extractor: FrozenExtractor, dims: int) -> tuple[list[Any], list[Any], list[int], int]:
    """The levels of encoder and decoder, the number of channels of each, and that of the input.

    `Synthetic` has no decoder: its coarse level and its features are read instead.
    """
    network: Any = extractor if isinstance(extractor, Anatomix) else extractor.network
    if isinstance(extractor, Synthetic):
        return [network.fine], [network.coarse, network.mixture], [*WIDTHS[dims], FEATURES], 1
    if isinstance(extractor, Anatomix):
        widths = [extractor.out_channels * 2**level for level in range(len(network.encoder))]
        return list(network.encoder), list(network.decoder), [*widths, *widths[-2::-1]], 1
    widths = list(network.encoder.output_channels)
    in_channels = int(extractor.input_channels)  # type: ignore[arg-type]
    return list(network.encoder.stages), list(network.decoder.stages), [*widths, *widths[-2::-1]], in_channels


def _level_adapter(level: nn.Module, dims: int, width: int, chosen: int | None) -> tuple[nn.Module, nn.Module]:
    """The last block of a level, and an adapter parallel to it."""
    block = _last_block(level)
    n_in = int(getattr(block, "input_channels", width))  # an attribute of most blocks; anatomix keeps the width
    return block, ConvolutionalAdapter(dims, n_in, width, hidden_width(width, chosen))


def _last_block(level: nn.Module) -> nn.Module:
    """The last convolution block of a level, inside its containers."""
    for name in ("convs", "blocks"):  # nnU-Net's StackedConvBlocks and StackedResidualBlocks
        level = getattr(level, name, level)
    return _last_block(level[-1]) if isinstance(level, nn.Sequential) else level


def _vit(model: Any, settings: TeacherSettings, depths: int) -> Teacher:
    """A ViT as teacher: evenly spaced blocks are read as 2-D maps (3, 6, 9, 12 of 12). All MLPs have adapters."""
    blocks: list[Any] = list(model.blocks)
    depths = min(depths, len(blocks))
    indices = [len(blocks) * (i + 1) // depths - 1 for i in range(depths)]
    width = vit.width(model)
    hidden = hidden_width(width, settings.adapter_width)
    adapters = [(block.mlp, TokenAdapter(width, hidden)) for block in blocks] if settings.adapts else []

    def run(x: Tensor) -> list[Tensor]:
        options = {"indices": indices, "stop_early": True, "output_fmt": "NCHW", "intermediates_only": True}
        return list(model.forward_intermediates(x, **options))

    mean, std = vit.mean_and_std(model)
    scaling = settings.teacher_scaling or "timm"
    return Teacher(model, run, [width] * depths, adapters, 3, True, vit.patch_size(model), scaling, mean, std)


def _reset(model: FrozenExtractor) -> None:
    device = next(model.parameters()).device
    model.cpu()  # so that the weights are the same on every device
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(RANDOM_SEED)
        for module in model.modules():
            reset: Any = getattr(module, "reset_parameters", None)
            if reset is not None:
                reset()
    model.to(device)
    model.has_weights = True


def _other_dimension(name: str, teacher_dims: int, dims: int) -> str:
    return (
        f"teacher '{name}' is {teacher_dims}-D, but the configuration is {dims}-D. In 3-D, use anatomix, synthetic, or "
        f"nnunet with the folder of a 3-D model; in 2-D, use a ViT in timm, synthetic, or nnunet with the folder of a "
        f"2-D model."
    )
