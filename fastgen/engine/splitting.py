"""A batch in parts: micro-batches, and which of them each process has."""

from ..config.train import TrainConfig
from ..errors import UserError


def micro_batches(train: TrainConfig, processes: int) -> tuple[int, int]:
    """Samples of a micro-batch, and how many of them each process, or group that shares samples, has for an update.

    Raises:
        UserError: the batch cannot be split over the processes.
    """
    group = train.sequence_parallel
    if processes % group:
        raise UserError(
            f"train.sequence_parallel is {group}, and {processes} processes are no groups of {group}: start a multiple "
            "of it, or set train.sequence_parallel=1"
        )
    processes, sharers = processes // group, "processes" if group == 1 else "groups of processes"
    batch, micro = train.batch, train.micro_batch or max(1, train.batch // processes)
    if batch % (micro * processes):
        raise UserError(
            f"train.batch is {batch}, which {processes} {sharers} with micro-batches of {micro} cannot share evenly: "
            f"make it a multiple of {micro * processes}"
        )
    return micro, batch // (micro * processes)
