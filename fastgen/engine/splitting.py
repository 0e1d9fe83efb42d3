"""A batch in parts: micro-batches, and which of them each process has."""

from ..config.schema import TrainConfig
from ..errors import UserError


def micro_batches(train: TrainConfig, processes: int) -> tuple[int, int]:
    """Samples of a micro-batch, and how many of them each process has for an update.

    Raises:
        UserError: the batch cannot be split over the processes.
    """
    batch, micro = train.batch, train.micro_batch or max(1, train.batch // processes)
    if batch % (micro * processes):
        raise UserError(
            f"train.batch is {batch}, which {processes} processes with micro-batches of {micro} cannot share evenly: "
            f"make it a multiple of {micro * processes}"
        )
    return micro, batch // (micro * processes)
