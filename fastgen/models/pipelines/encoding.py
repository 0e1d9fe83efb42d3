"""Prompts and labels as a denoiser is told of them: captured once each, kept on disk where a folder is given."""

import ast
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ..conditioning import Conditioning
from ..denoiser import CallForm
from ..layout import flat, same, tree
from .components import encoders_of, network_of, rest, wake
from .probe import capture, capture_null
from .refusal import failure
from .stock_pipeline import StockPipeline

PROMPTS_AT_ONCE = 32


@dataclass(frozen=True)
class Asking:
    """How a pipeline is asked for something.

    Args:
        argument: argument of its call for prompts or labels; None for an unconditional pipeline.
        examples: two different values of it.
        size: the call's own height, width and number of frames, where they are not its defaults.
        negative: negative prompt of the unconditional half, None for the pipeline's own.
        null_label: the label that means "no class", for pipelines that do not guide by themselves.
    """

    argument: str | None
    examples: tuple[Any, Any]
    size: Mapping[str, bool | int | float]
    negative: str | None = None
    null_label: int | None = None

    def call(self, values: Sequence[Any]) -> dict[str, Any]:
        """The call's own arguments for these values."""
        return {**self.size, **({self.argument: list(values)} if self.argument else {})}


class Encoder:
    """What a pipeline tells its denoiser of each prompt or label, and of nothing.

    The text encoders leave the device between encodings.

    Args:
        pipe: the pipeline.
        form: how its denoiser is called.
        asking: how the pipeline is asked.
        folder: folder of the cache; None keeps rows in memory.
    """

    def __init__(self, pipe: StockPipeline, form: CallForm, asking: Asking, *, folder: Path | None) -> None:
        self._pipe, self._form, self._asking = pipe, form, asking
        self._memory: dict[Any, Conditioning] = {}
        self._depth = 0
        with self.awake():
            example = capture(pipe, form, asking.call(asking.examples), rows=2)
            self.shared = Conditioning(1, shared=example.shared).to("cpu").shared
            null = self._captured_null(example)
        self._null = null.to("cpu") if null is not None else None
        self._folder = folder / identity(pipe, form, asking) if folder is not None else None

    def rows(self, values: Sequence[Any]) -> Conditioning:
        """The conditioning of these values, with its null twin; on the CPU."""
        self.fill(values)
        told = [self._kept(value) for value in values]
        null = self._null.index(torch.zeros(len(values), dtype=torch.long)) if self._null is not None else None
        return replace(Conditioning.cat(told), shared=self.shared, null=null)

    @property
    def has_null(self) -> bool:
        """Whether there is an unconditional half."""
        return self._null is not None

    def fill(self, values: Sequence[Any], *, progress: bool = False) -> None:
        """Encodes what is not kept yet."""
        fresh = [value for value in dict.fromkeys(values) if not self._has(value)]
        if not fresh:
            return
        with self.awake(), tqdm(total=len(fresh), desc="encoding", disable=None if progress else True) as bar:
            for start in range(0, len(fresh), PROMPTS_AT_ONCE):
                part = fresh[start : start + PROMPTS_AT_ONCE]
                told = capture(self._pipe, self._form, self._asking.call(part), rows=len(part)).to("cpu")
                for i, value in enumerate(part):
                    self._keep(value, told.index(torch.tensor([i])))
                bar.update(len(part))

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within, the text encoders are on the denoiser's device; afterwards they are in main memory. It nests."""
        self._depth += 1
        wake(self._pipe)
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                rest(self._pipe)

    def _captured_null(self, example: Conditioning) -> Conditioning | None:
        pipe, form, asking = self._pipe, self._form, self._asking
        if asking.null_label is not None:
            null = capture(pipe, form, asking.call([asking.null_label] * 2), rows=2)
        else:
            call = asking.call(asking.examples)
            found = capture_null(pipe, form, call, plain=example, negative=asking.negative)
            if found is None:
                return None
            null = found
        first, second = (null.index(torch.tensor([i])) for i in (0, 1))
        if not same(first, second):
            raise failure(type(pipe).__name__, "the unconditional half does not depend on the prompt", "it does")
        return first

    def _has(self, value: Any) -> bool:
        return value in self._memory or (self._folder is not None and _is_whole(self._file(value)))

    def _kept(self, value: Any) -> Conditioning:
        if value in self._memory:
            return self._memory[value]
        return _read(self._file(value))

    def _keep(self, value: Any, row: Conditioning) -> None:
        if self._folder is None:
            self._memory[value] = row
        else:
            _write(self._file(value), row)

    def _file(self, value: Any) -> Path:
        assert self._folder is not None
        name = hashlib.sha256(str(value).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.safetensors"


def identity(pipe: StockPipeline, form: CallForm, asking: Asking) -> str:
    """A hash of everything that a prompt's conditioning depends on but the prompt: encoders, sizes, call."""
    digest = hashlib.blake2b(digest_size=16)
    told = [
        type(pipe).__name__,
        diffusers.__version__,
        sorted(asking.size.items()),
        asking.argument,
        form,
        dict(network_of(pipe).config),
    ]
    digest.update(repr(told).encode())
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, PreTrainedTokenizerBase):
            digest.update(repr((name, _spelt_out(part))).encode())
    for module in encoders_of(pipe):
        for name, tensor in module.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _spelt_out(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """All that decides over the tokens of a prompt: tokenizers of one vocabulary may split a prompt otherwise."""
    rules: Any = sorted(tokenizer.get_vocab().items())
    if hasattr(tokenizer, "backend_tokenizer"):
        last_call = {"truncation": None, "padding": None}
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) | last_call
    return rules, tokenizer.model_max_length, tokenizer.padding_side, tokenizer.chat_template


def _write(file: Path, row: Conditioning) -> None:
    """One row: tensors by path; entries of lists are marked, those that are no tensors kept as Python literals."""
    leaves = flat(row.batched)
    listed = {path: leaf[0] for path, leaf in leaves.items() if isinstance(leaf, list)}
    tensors = {path: leaf for path, leaf in {**leaves, **listed}.items() if isinstance(leaf, Tensor)}
    notes = {path: "tensor" if isinstance(leaf, Tensor) else repr(leaf) for path, leaf in listed.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    save_file({path: tensor.contiguous() for path, tensor in tensors.items()}, temporary, metadata=notes)
    os.replace(temporary, file)


def _is_whole(file: Path) -> bool:
    """Whether a row can be read; one that is not there or truncated is made again."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (SafetensorError, OSError):
        return False


def _read(file: Path) -> Conditioning:
    """A row as it was written."""
    with safe_open(file, framework="pt") as content:
        leaves: dict[str, Any] = {path: content.get_tensor(path) for path in content.keys()}  # noqa: SIM118
        notes = content.metadata() or {}
    for path, note in notes.items():
        leaves[path] = [leaves[path] if note == "tensor" else ast.literal_eval(note)]
    return Conditioning(1, tree(leaves))
