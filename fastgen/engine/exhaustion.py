"""Memory that runs out, told in words: where, what the device said, and what takes less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..errors import NoMemoryError
from ..models.pipelines.refusal import cause

SAYS_SO = ("DefaultCPUAllocator", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")
"""What PyTorch's plain errors hold where memory ran out."""
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


def ran_out(error: BaseException) -> bool:
    """Whether an error says that there was too little memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SAYS_SO)
