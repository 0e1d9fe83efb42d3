"""What a LoRA file says of every layer, in the keys of peft, of Diffusers, old and new, or of Kohya's scripts.

LoRA (2106.09685): dW = alpha / r * B A.  DoRA (2402.09353): W + dW gets rows of given norms.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...errors import UserError
from ...limits import parsed
from .finite import check_finite

METADATA = "lora_adapter_metadata"
_DOWN = re.compile(r"[._]?(?:lora_A(?:\.\w+)?|lora_down|lora\w*\.down)\.weight$")
_UP = (("lora_A", "lora_B"), ("lora_down", "lora_up"), (".down.", ".up."))
_MAGNITUDES = ("dora_scale", "lora_magnitude_vector", "lora_magnitude_vector.weight")
_MEASURELESS = re.compile(r"\)[*+{]|(?:[*+{].*){4}")  # of a pattern: what may take for ever
_PARTS = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Update:
    """The update of one layer, or of several that the file holds as one.

    Args:
        down, up: A [r, in, ...] and B [out, r, ...].
        scale: alpha / r.
        magnitude: the norms [out] that the rows of the updated weight get, where it is a DoRA.
        keys: keys of the file: A's and B's, and alpha's and the norms' where they are there.
    """

    down: Tensor
    up: Tensor
    scale: float
    magnitude: Tensor | None
    keys: tuple[str, ...]

    def delta(self, rows: Tensor) -> Tensor:
        """dW [rows, in] in float32."""
        return self.scale * (self.up[rows].flatten(1).float() @ self.down.flatten(1).float())

    @cached_property
    def sketch(self) -> Tensor:
        """dW [out, in] times a random vector [in], by which it is known again."""
        return sketch(self.up, self.down, self.scale)

    @cached_property
    def length(self) -> float:
        """The norm of the sketch."""
        return float(self.sketch.norm())

    def added(self, weight: Tensor, rows: Tensor) -> Tensor:
        """What these rows of the update change in a layer's weight [rows, in, ...], in float32."""
        before = weight.float()
        after = before + self.delta(rows).reshape(before.shape).to(before.device)
        if self.magnitude is not None:
            norms = self.magnitude[rows].to(before) / after.flatten(1).norm(dim=1)
            after = after * norms.reshape(-1, *(1,) * (after.ndim - 1))
        return after - before


def sketch(up: Tensor, down: Tensor, scale: float) -> Tensor:
    """scale * B A v [out] for a vector v of in normal numbers, the same at every call."""
    flat = down.flatten(1).cpu().float()
    vector = torch.randn(flat.shape[1], generator=torch.Generator().manual_seed(0))
    return scale * (up.flatten(1).cpu().float() @ (flat @ vector))


def read_updates(file: Path) -> tuple[list[Update], set[str]]:
    """All the updates in a LoRA file, and the keys that are no part of one.

    Raises:
        UserError: what the file says of itself is not what peft says, or a tensor is not finite.
    """
    with safe_open(file, framework="pt") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
        settings = parsed((opened.metadata() or {}).get(METADATA, "{}").encode(), f"{METADATA} of {file}")
    _check_settings(settings, file)
    check_finite(tensors.items(), file)
    updates = [update for key in tensors if (update := _update(key, tensors, settings)) is not None]
    return updates, tensors.keys() - {key for update in updates for key in update.keys}


def _check_settings(settings: Any, file: Path) -> None:
    """Raises UserError for settings that give no scale."""
    told = settings if isinstance(settings, dict) else {"lora_alpha": str(settings)}
    for name, value in told.items():
        kind = name.rpartition(".")[2]
        patterns = value if kind == "alpha_pattern" and isinstance(value, dict) else {}
        unknown = [str(value)] if kind == "alpha_pattern" and value and not patterns else []
        alphas = [value] if kind == "lora_alpha" else [*patterns.values(), *unknown]
        if not all(map(_is_alpha, alphas)) or not all(map(_is_pattern, patterns)):
            raise UserError(
                f"{METADATA} of {file} says {name} = {value!r:.80}, from which no scale follows: take the LoRA as its "
                "author published it, or save it again with peft"
            )


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_pattern(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return len(text) < 1000 and not _MEASURELESS.search(text)


def normal_form(updates: list[Update]) -> dict[str, Tensor]:
    """The same updates without magnitudes, with one rank and a scale of 1.

    There is nothing in them that could be taken from one layer for another.
    """
    rank = max(len(update.down) for update in updates)
    tensors: dict[str, Tensor] = {}
    for update in updates:
        down, up, *told = update.keys
        tensors[down] = _padded(update.down.float(), 0, rank)
        tensors[up] = _padded(update.up.float() * update.scale, 1, rank)
        tensors |= {key: torch.tensor(float(rank)) for key in told if key.endswith(".alpha") and "lora_down" in down}
    return tensors


def _update(key: str, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> Update | None:
    """The update whose A has this key."""
    match = _DOWN.search(key)
    if match is None:
        return None
    layer = key[: match.start()]
    other = layer + next(match[0].replace(a, b) for a, b in _UP if a in match[0])
    if other not in tensors:
        return None
    down, up = tensors[key], tensors[other]
    if min(down.ndim, up.ndim) < 2 or len(down) != up[:1].numel() or not len(down) or not _are_fractions(down, up):
        return None
    norms = next((f"{layer}.{name}" for name in _MAGNITUDES if f"{layer}.{name}" in tensors), None)
    magnitude = tensors[norms] if norms else None
    if magnitude is not None and (magnitude.numel() != len(up) or not _are_fractions(magnitude)):
        return None
    stated = [f"{layer}.alpha"] if f"{layer}.alpha" in tensors else []
    if stated and tensors[stated[0]].numel() != 1:
        return None
    rank = len(down)
    scale = float(tensors[stated[0]].real) / rank if stated else _scale(layer, settings, rank)
    used = (key, other, *stated, *([norms] if norms else []))
    return Update(down, up, scale, None if magnitude is None else magnitude.flatten(), used)


def _are_fractions(*tensors: Tensor) -> bool:
    return all(tensor.is_floating_point() for tensor in tensors)


def _scale(layer: str, settings: Mapping[str, Any], rank: int) -> float:
    """alpha / r by the settings that peft keeps in the metadata, or 1 where they say nothing of the layer's network."""
    part = next((part for part in _PARTS if layer.startswith(f"{part}.")), "")
    told = {name.removeprefix(f"{part}."): value for name, value in settings.items()}
    alpha = told.get("lora_alpha", rank)
    for pattern, own in (told.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", layer):
            alpha = own
            break
    return float(alpha / (math.sqrt(rank) if told.get("use_rslora") else rank))


def _padded(factor: Tensor, axis: int, rank: int) -> Tensor:
    missing = list(factor.shape)
    missing[axis] = rank - missing[axis]
    return torch.cat([factor, factor.new_zeros(missing)], dim=axis)
