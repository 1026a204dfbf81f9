"""Annealing DropGen's dropout at the end of a training.

The paper keeps p constant. A smaller p in the last epochs lets the network use the image again.
"""

from __future__ import annotations

from nnunet_dg.dropgen.dropout import Dropout, Rate, annealed
from nnunet_dg.method import Student, TrainingModule


class Annealing(TrainingModule):
    """Moves the dropout's p linearly to ``p_end`` over the last fifth of the epochs, see `annealed`.

    The epoch decides p, so that a resumed training has the right one.

    Args:
        p: Probability, or the lowest and highest one, of the earlier epochs.
        p_end: Probability of the last epoch.
        student: Network in training, which contains the dropout.
    """

    def __init__(self, p: Rate, p_end: float, student: Student) -> None:
        super().__init__()
        self.p, self.p_end, self.student = p, p_end, student
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Set the p of the epoch."""
        for module in self.student.network.modules():
            if isinstance(module, Dropout):
                module.move(*annealed(self.p, self.p_end, epoch, self.student.num_epochs))
