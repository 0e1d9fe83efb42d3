"""Memory that runs out, told in words: where, what the device said, and what takes less."""

from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import NoMemoryError, ran_out
from ..models.pipelines.refusal import cause

GENERAL = (
    "What takes less, the most effective first: a smaller train.micro_batch (`fastgen train --find-batch` finds the "
    "largest that fits), train.gradient_checkpointing=true, train.cuda_graphs=false, train.precision=bf16, "
    "train.optim.name=adamw8bit, train.ema_device=cpu, memory=low, sharing=lora"
)


@contextmanager
def memory_told(doing: str, *, stage: int) -> Iterator[None]:
    """Within, memory that runs out is said in words.

    Args:
        doing: what is done within.
        stage: index of the stage that it is done for.

    Raises:
        NoMemoryError: in place of the device's or the system's own error.
    """
    try:
        yield
    except Exception as error:
        if ran_out(error):
            raise NoMemoryError(doing, cause(error), stage, GENERAL) from error
        raise
