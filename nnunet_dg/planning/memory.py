"""Mixins for nnU-Net's planners: option checks, shared data, normalization, and memory for DropGen's features."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_dg.datasets.normalization import any_modality
from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.dropgen.network import extractor_of, num_combined_channels
from nnunet_dg.errors import SettingsError
from nnunet_dg.extractors import FrozenExtractor
from nnunet_dg.extractors.memory import peak_numbers
from nnunet_dg.planning.shared_data import kept_sections, share_data
from nnunet_dg.training.plans import KEY, PLANNED_FOR

DEFAULT = DropGenSettings()
MIN_PATCH_AXIS = 2  # voxels; a single one has no context, and extractors refuse it
MASKED_BELOW = 3 / 4  # nnU-Net's threshold: fraction of the median image left after cropping to its nonzero region


class Planning:
    """Mixin for nnU-Net's planners. List it before the planner among the base classes.

    It refuses invalid options with an explanation, keeps the settings of an earlier plans file with the same name, and
    reuses preprocessed data of other plans of the dataset if they would be the same.

    Attributes:
        plans_name: Default name of the plans file.
        any_modality: Whether to use `AnyModalityNormalization` for channels that nnU-Net would normalize as CT or by
            z-score, so that the same plans fit CT and MR. Predictions then need this package.
    """

    plans_name: str
    any_modality = False

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        """Take the arguments of nnU-Net's planners. Memory target and plans name default to those of the planner.

        Raises:
            SettingsError: The memory target, the spacing or the plans name is invalid.
        """
        plans_name = self.plans_name if plans_name is None else plans_name
        _check_plans_name(plans_name)
        memory = {}
        if gpu_memory_target_in_gb is not None:
            _check_memory(gpu_memory_target_in_gb)
            memory = {"gpu_memory_target_in_gb": gpu_memory_target_in_gb}
        if overwrite_target_spacing is not None:
            overwrite_target_spacing = _checked_spacing(overwrite_target_spacing)
        super().__init__(  # type: ignore[call-arg]
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
            **memory,
        )

    def static_estimate_VRAM_usage(  # noqa: N802
        self, patch_size: tuple[int, ...], *network: Any
    ) -> float:
        """nnU-Net's estimate. nnU-Net shrinks the patch until the estimate fits, even below one voxel.

        Raises:
            SettingsError: An axis of the patch has shrunk below one voxel.
        """
        if any(size < 1 for size in patch_size):
            raise SettingsError(
                f"-gpu_memory_target {self.UNet_vram_target_GB:g} (GB) is too small for any "  # type: ignore[attr-defined]
                f"{len(patch_size)}-D network of {type(self).__name__}: even a patch of one voxel needs more. Increase "
                f"it, or leave it out to use the planner's default."
            )
        estimate: float = super().static_estimate_VRAM_usage(patch_size, *network)  # type: ignore[misc]
        return estimate

    def determine_normalization_scheme_and_whether_mask_is_used_for_norm(self) -> tuple[list[str], list[bool]]:
        """nnU-Net's schemes, or with `any_modality` those for CT and MR, masked by nnU-Net's rule for z-scores."""
        schemes, masks = super().determine_normalization_scheme_and_whether_mask_is_used_for_norm()  # type: ignore[misc]
        if not self.any_modality:
            return schemes, masks
        replaced = any_modality(schemes)
        cropped = self.dataset_fingerprint["median_relative_size_after_cropping"] < MASKED_BELOW  # type: ignore[attr-defined]
        ours = [scheme != before for scheme, before in zip(replaced, schemes, strict=True)]
        return replaced, [bool(cropped) if is_ours else mask for is_ours, mask in zip(ours, masks, strict=True)]

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's plans, with no patch axis below `MIN_PATCH_AXIS` voxels."""
        plan: dict[str, Any] = super().get_plans_for_configuration(*args, **kwargs)  # type: ignore[misc]
        plan["patch_size"] = _usable(plan["patch_size"])
        return plan

    def generate_data_identifier(self, configuration_name: str) -> str:
        """A data folder for these plans only. `save_plans` replaces it if other plans have the same data."""
        return f"{self.plans_identifier}_{configuration_name}"  # type: ignore[attr-defined]

    def sections(self, kept: dict[str, Any]) -> dict[str, Any]:
        """``plans["nnunet_dg"]`` of the new plans.

        Args:
            kept: ``plans["nnunet_dg"]`` of an earlier plans file with the same name, or an empty dict.
        """
        return kept

    def save_plans(self, plans: dict[str, Any]) -> None:
        """Save the plans as nnU-Net does, after letting them share preprocessed data with other plans of the dataset.

        Settings in an earlier plans file with the same name are kept, as nnU-Net keeps custom configurations, and take
        precedence over the planner's.
        """
        folder = Path(nnUNet_preprocessed) / self.dataset_name  # type: ignore[attr-defined]
        own = folder / f"{self.plans_identifier}.json"  # type: ignore[attr-defined]
        kept = kept_sections(own)
        if sections := self.sections(kept):
            plans[KEY] = sections
        if methods := sorted(set(kept) - {PLANNED_FOR}):
            print(f"Settings in {own.name} are kept: {', '.join(methods)}.")
        recursive_fix_for_json_export(plans)
        share_data(plans, folder)
        super().save_plans(plans)  # type: ignore[misc]


class DropGenPlanning(Planning):
    """Mixin for nnU-Net's planners. List it before the planner among the base classes.

    It plans a network whose input is the image together with its features, within the same memory target. In 2-D, where
    anatomix is not available, it plans for MIND features. The settings that the estimate assumed are written to
    ``plans["nnunet_dg"]["planned_for"]``. They are not training settings, so every DropGen trainer keeps its own.

    Attributes:
        dropgen: DropGen settings that the memory estimate assumes. To plan for another extractor, subclass a planner
            with other settings; values that differ from the defaults are written to ``plans["nnunet_dg"]["dropgen"]``
            and apply to every trainer.
    """

    dropgen = DEFAULT

    def static_estimate_VRAM_usage(  # noqa: N802
        self, patch_size: tuple[int, ...], input_channels: int, *network: Any
    ) -> float:
        """nnU-Net's count of feature map elements, plus DropGen's.

        For each element that nnU-Net counts, two numbers are kept for the backward pass: before and after
        normalization. The combined channels that enter the network are kept once, so they count half. The extractor's
        memory is freed before the network runs, so it matters only if it exceeds that of the network.
        """
        settings, extractor = self._planned_for[len(patch_size)]
        combined = num_combined_channels(settings, input_channels, extractor.out_channels if extractor else 0)
        counted = super().static_estimate_VRAM_usage(patch_size, combined, *network)
        patch = _usable(patch_size)
        extracting = peak_numbers(extractor, (input_channels, 1, *patch)) if extractor else 0
        return max(counted + combined * prod(patch) / 2, extracting / 2)

    @cached_property
    def _planned_for(self) -> dict[int, tuple[DropGenSettings, FrozenExtractor | None]]:
        """The assumed settings and their extractor, without weights, by the number of spatial axes."""
        planned = {}
        for spatial_dims in (2, 3):
            settings = self.dropgen.completed()
            try:
                extractor = extractor_of(settings, spatial_dims)
            except NotImplementedError:
                settings = replace(settings, extractor="mind", layer="penultimate", weights=None, architecture=None)
                extractor = extractor_of(settings, spatial_dims)
            planned[spatial_dims] = settings, extractor
        return planned

    def sections(self, kept: dict[str, Any]) -> dict[str, Any]:
        """``plans["nnunet_dg"]`` with the assumed settings, and with the planner's unless ``kept`` overrides them."""
        counted = {f"{dims}d": asdict(settings) for dims, (settings, _) in self._planned_for.items()}
        chosen = {name: value for name, value in asdict(self.dropgen).items() if value != getattr(DEFAULT, name)}
        settings = {"dropgen": chosen | kept.get("dropgen", {})} if chosen else {}
        return kept | settings | {PLANNED_FOR: counted}


def _check_plans_name(name: str) -> None:
    if name in ("", "..") or Path(name).name != name or "\\" in name:
        raise SettingsError(f"The plans name becomes a file name and must not contain folders; got {name!r}.")


def _check_memory(gigabytes: float) -> None:
    if not (math.isfinite(gigabytes) and gigabytes > 0):
        raise SettingsError(f"-gpu_memory_target must be a positive number of gigabytes; got {gigabytes}.")


def _checked_spacing(spacing: Sequence[float]) -> list[float]:
    given = ", ".join(map(str, spacing))
    if len(spacing) != 3:
        raise SettingsError(
            f"-overwrite_target_spacing takes three numbers, in millimeters, in the reader's axis order (SimpleITK: z, "
            f"y, x); got {len(spacing)}: {given}. For 2-D data, use 999 as the first."
        )
    if not all(math.isfinite(value) and value > 0 for value in spacing):
        raise SettingsError(f"-overwrite_target_spacing takes three positive numbers, in millimeters; got {given}.")
    return [float(value) for value in spacing]


def _usable(patch_size: Iterable[int]) -> list[int]:
    """The patch size with every axis at least `MIN_PATCH_AXIS` voxels."""
    return [max(int(size), MIN_PATCH_AXIS) for size in patch_size]
