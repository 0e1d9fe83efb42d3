"""Weights that are no numbers, named when they are loaded: all that is computed with them would be none either."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ...errors import UserError, first_few

_COMPUTED = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_SHOWN = 3


@torch.no_grad()
def check_finite(tensors: Iterable[tuple[str, Tensor]], origin: str | Path) -> None:
    """Refuses tensors, of one device, in which there is NaN or infinity; their device is waited for once.

    Args:
        tensors: by their names.
        origin: where they come from, in words.

    Raises:
        UserError: naming them and the remedy.
    """
    seen = {name: tensor for name, tensor in tensors if tensor.dtype in _COMPUTED and tensor.numel()}
    if not seen:
        return
    ends = torch.stack([torch.stack(tensor.aminmax()).double() for tensor in seen.values()])
    bad = [name for name, good in zip(seen, ends.isfinite().all(dim=1).tolist(), strict=True) if not good]
    if bad:
        narrow = any(seen[name].dtype == torch.float16 for name in bad)
        wider = ", or load it in bf16 or fp32 if it holds values too large for fp16" if narrow else ""
        raise UserError(
            f"{origin} has NaN or infinity among its weights, in {first_few(bad, _SHOWN)}: copy or download it again, "
            f"or take weights from before it broke{wider}"
        )
