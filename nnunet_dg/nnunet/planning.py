"""What the DropGen planners add to nnU-Net's: memory for the features, usable patches, and shared preprocessed data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from batchgenerators.utilities.file_and_folder_operations import load_json
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

from nnunet_dg.dropgen import DropGenSettings
from nnunet_dg.dropgen.network import extractor_of, num_combined_channels
from nnunet_dg.extractors import FrozenExtractor
from nnunet_dg.extractors.memory import peak_numbers
from nnunet_dg.nnunet.settings import KEY, PLANNED_FOR

WHAT_IS_COUNTED = ("extractor", "layer", "combine", "inputs")  # settings that decide how much memory features take
DEFAULT = DropGenSettings()
MIN_PATCH_AXIS = 2  # voxels: fewer have no context, and extractors refuse them
WHAT_MAKES_THE_DATASET = ("transpose_forward", "image_reader_writer", "foreground_intensity_properties_per_channel")
WHAT_MAKES_THE_DATA = (
    "preprocessor_name", "spacing", "normalization_schemes", "use_mask_for_norm", "resampling_fn_data",
    "resampling_fn_seg", "resampling_fn_data_kwargs", "resampling_fn_seg_kwargs",
)  # fmt: skip


class DropGenPlanning:
    """Put before one of nnU-Net's planners in the bases of a class.

    The network is planned for the image beside its features (`dropgen` says which), within the same memory target. In
    2-D, where anatomix does not exist, features are MIND's. What was counted is written to
    ``plans["nnunet_dg"]["planned_for"]``; it is no setting, so every trainer of the family keeps its meaning.
    A configuration that asks for the same data as nnU-Net's own plans of the dataset uses them.

    Attributes:
        dropgen: what the memory estimate counts. A planner for another extractor is a subclass with other settings;
            those that differ from the defaults are written to ``plans["nnunet_dg"]["dropgen"]``, for every trainer.
        plans_name: of the plans file, unless another is given.
    """

    dropgen = DEFAULT
    plans_name: str

    def __init__(
        self,
        dataset_name_or_id: str | int,
        gpu_memory_target_in_gb: float | None = None,
        preprocessor_name: str = "DefaultPreprocessor",
        plans_name: str | None = None,
        overwrite_target_spacing: list[float] | None = None,
        suppress_transpose: bool = False,
    ) -> None:
        """As nnU-Net's; without a memory target or a plans name, the planner's own."""
        memory = {} if gpu_memory_target_in_gb is None else {"gpu_memory_target_in_gb": gpu_memory_target_in_gb}
        super().__init__(  # type: ignore[call-arg]
            dataset_name_or_id,
            preprocessor_name=preprocessor_name,
            plans_name=plans_name or self.plans_name,
            overwrite_target_spacing=overwrite_target_spacing,
            suppress_transpose=suppress_transpose,
            **memory,
        )

    def static_estimate_VRAM_usage(  # noqa: N802
        self,
        patch_size: tuple[int, ...],
        input_channels: int,
        output_channels: int,
        arch_class_name: str,
        arch_kwargs: dict[str, Any],
        arch_kwargs_req_import: tuple[str, ...],
    ) -> float:
        """nnU-Net's count of feature map elements, with what DropGen holds beside them.

        A counted element is kept twice for the backward pass, before and after its norm; the combined channels that
        enter the network are kept once. What the extractor holds while it computes is gone by then, and counts only
        where it is more than all the rest.
        """
        settings, extractor = self._planned_for[len(patch_size)]
        combined = num_combined_channels(settings, input_channels, extractor.out_channels if extractor else 0)
        network = super().static_estimate_VRAM_usage(  # type: ignore[misc]
            patch_size, combined, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
        )
        patch = _usable(patch_size)
        passing = peak_numbers(extractor, (input_channels, 1, *patch)) if extractor else 0
        return max(network + combined * prod(patch) / 2, passing / 2)

    @cached_property
    def _planned_for(self) -> dict[int, tuple[DropGenSettings, FrozenExtractor | None]]:
        """By the number of spatial axes: the settings that are counted, and their extractor, without weights."""
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

    def get_plans_for_configuration(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """nnU-Net's, with no patch axis below `MIN_PATCH_AXIS` voxels."""
        plan: dict[str, Any] = super().get_plans_for_configuration(*args, **kwargs)  # type: ignore[misc]
        plan["patch_size"] = _usable(plan["patch_size"])
        return plan

    def generate_data_identifier(self, configuration_name: str) -> str:
        """Data of these plans' own; `save_plans` replaces them by nnU-Net's where the data are the same."""
        return f"{self.plans_identifier}_{configuration_name}"  # type: ignore[attr-defined]

    def save_plans(self, plans: dict[str, Any]) -> None:
        """nnU-Net's, after noting what was counted and sharing preprocessed data with the dataset's other plans.

        Settings in an earlier plans file of this name stay, as custom configurations do, and come before the planner's.
        """
        folder = Path(nnUNet_preprocessed) / self.dataset_name  # type: ignore[attr-defined]
        own = folder / f"{self.plans_identifier}.json"  # type: ignore[attr-defined]
        kept = load_json(str(own)).get(KEY, {}) if own.is_file() else {}
        counted = {f"{dims}d": asdict(settings) for dims, (settings, _) in self._planned_for.items()}
        chosen = {name: value for name, value in asdict(self.dropgen).items() if value != getattr(DEFAULT, name)}
        settings = {"dropgen": chosen | kept.get("dropgen", {})} if chosen else {}
        plans[KEY] = kept | settings | {PLANNED_FOR: counted}
        if methods := sorted(set(kept) - {PLANNED_FOR}):
            print(f"Settings in {own.name} are kept: {', '.join(methods)}.")
        recursive_fix_for_json_export(plans)
        share_data(plans, folder)
        super().save_plans(plans)  # type: ignore[misc]


def _usable(patch_size: Iterable[int]) -> list[int]:
    """With no axis below `MIN_PATCH_AXIS` voxels."""
    return [max(int(size), MIN_PATCH_AXIS) for size in patch_size]


def planned_for_other(plans: dict[str, Any], settings: DropGenSettings, spatial_dims: int) -> str:
    """In words, where a training computes other features than the planner counted; empty where it does not."""
    counted = plans.get(KEY, {}).get(PLANNED_FOR, {}).get(f"{spatial_dims}d", {})
    names = [n for n in WHAT_IS_COUNTED if n in counted and counted[n] != getattr(settings, n)]
    if not names:
        return ""
    differ = ", ".join(f"{name} {counted[name]!r}, and this training has {getattr(settings, name)!r}" for name in names)
    return (
        f"These plans' patch and batch size were chosen for {differ}. Memory may run short, or be left over; a planner "
        f"whose dropgen settings are this training's counts right."
    )


def share_data(plans: dict[str, Any], folder: Path) -> None:
    """Let configurations use the data of other plans in the preprocessed ``folder``, where the data are the same.

    The same are: transposition, reader and intensities of the dataset, and in the configuration everything in
    `WHAT_MAKES_THE_DATA`. Data that exist come before data that are only planned, and nnU-Net's own before others'.
    """
    paths = sorted(folder.glob("*.json"), key=lambda path: (path.stem != "nnUNetPlans", path.stem))
    others = [load_json(str(path)) for path in paths if path.stem != plans["plans_name"]]
    others = [other for other in others if isinstance(other, dict) and "configurations" in other]
    same_dataset = [o for o in others if all(plans[key] == o.get(key) for key in WHAT_MAKES_THE_DATASET)]
    to_do, shared = [], False
    for name, configuration in plans["configurations"].items():
        if "spacing" not in configuration:
            continue
        same = [
            theirs["data_identifier"]
            for theirs in (other["configurations"].get(name, {}) for other in same_dataset)
            if all(configuration[key] == theirs.get(key) for key in WHAT_MAKES_THE_DATA)
        ]
        identifiers = [*same, configuration["data_identifier"]]
        there = [identifier for identifier in identifiers if (folder / identifier).is_dir()]
        configuration["data_identifier"] = (there or identifiers)[0]
        if there:
            print(f"{name}: the preprocessed data of {there[0]} are used.")
            shared = shared or there[0] in same
        else:
            to_do.append(name)
    if shared:
        print("nnUNetv2_plan_and_preprocess deletes them and makes them again; nnUNetv2_plan_experiment does not.")
    if to_do:
        print(f"To be preprocessed: nnUNetv2_preprocess -plans_name {plans['plans_name']} -c {' '.join(to_do)}")
