"""DropGen in nnU-Net: frozen stable features beside the image, and channel dropout over both (arXiv 2604.02564)."""

from nnunet_dg.dropgen import DropGenSettings, build_dropgen_network
from nnunet_dg.host import unwrap
from nnunet_dg.outside import Outside
from nnunet_dg.training.load_extractor import load_extractor
from nnunet_dg.training.method_trainer import MethodTrainer
from nnunet_dg.training.plans import planned_for_other, resolve


class nnUNetTrainerDropGen(MethodTrainer):
    """nnU-Net's own recipe on the planned network, which sees the image and 16 anatomix features, dropped at p = 0.5.

    A variant is a subclass with other `dropgen` settings; ``plans["nnunet_dg"]["dropgen"]`` comes before both.
    """

    dropgen = DropGenSettings()

    @classmethod
    def build_network_architecture(
        cls, plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision=True
    ):
        def planned(channels):
            return super(nnUNetTrainerDropGen, cls).build_network_architecture(
                plans_manager, configuration_manager, channels, num_output_channels, enable_deep_supervision
            )

        settings = resolve(plans_manager.plans, "dropgen", cls.dropgen)
        outside = Outside.of(configuration_manager)
        num_image_channels = len(outside.masked)
        patch_size = configuration_manager.patch_size
        try:
            return build_dropgen_network(settings, planned, num_input_channels, num_image_channels, patch_size, outside)
        except NotImplementedError as error:
            raise NotImplementedError(
                f"{cls.__name__}: {error} Use -tr nnUNetTrainerDropGen_MIND, and no extractor in "
                f'plans["nnunet_dg"]["dropgen"].'
            ) from None

    def prepare_training(self):
        load_extractor(unwrap(self.network), self.print_to_log_file)
        spatial_dims = len(self.configuration_manager.patch_size)
        if other := planned_for_other(self.plans_manager.plans, self.settings("dropgen"), spatial_dims):
            self.print_to_log_file(other)
        super().prepare_training()


class nnUNetTrainerDropGen_p025(nnUNetTrainerDropGen):
    """Milder dropping: leans more on the image, closer to nnU-Net in-domain."""

    dropgen = DropGenSettings(p=0.25)


class nnUNetTrainerDropGen_p075(nnUNetTrainerDropGen):
    """Stronger dropping: leans more on the features."""

    dropgen = DropGenSettings(p=0.75)


class nnUNetTrainerDropGen_MIND(nnUNetTrainerDropGen):
    """MIND-SSC descriptors instead of anatomix: no weights to fetch, 2-D and 3-D."""

    dropgen = DropGenSettings(extractor="mind")
