"""Prompts and labels as a denoiser is told of them: captured once each, kept on disk where a folder is given."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from ...errors import UserError, warn
from ..conditioning import Conditioning
from ..denoiser import CallForm
from ..layout import same
from .components import encoders_of, network_of, rest, wake
from .identity import add, digest_of, ordered
from .probe import capture, capture_null
from .refusal import failure
from .stock_pipeline import StockPipeline
from .store import Memory, Store, bytes_of
from .waking import Sleepers, awake

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
        beside: other parts that are on the device for the pipeline's own calls alone.
    """

    def __init__(
        self,
        pipe: StockPipeline,
        form: CallForm,
        asking: Asking,
        *,
        folder: Path | None,
        beside: Sleepers | None = None,
    ) -> None:
        self._pipe, self._form, self._asking, self._beside = pipe, form, asking, beside
        self._depth = 0
        with self.awake():
            example = capture(pipe, form, asking.call(asking.examples), rows=2)
            self.shared = Conditioning(1, shared=example.shared).to("cpu").shared
            null = self._captured_null(example)
        self._null = null.to("cpu") if null is not None else None
        self._store = Store(folder / identity(pipe, form, asking)) if folder is not None else Memory()

    def rows(self, values: Sequence[Any]) -> Conditioning:
        """The conditioning of these values, with its null twin; on the CPU."""
        self.fill(values)
        told = [self._row(value) for value in values]
        null = self._null.index(torch.zeros(len(values), dtype=torch.long)) if self._null is not None else None
        return replace(Conditioning.cat(told), shared=self.shared, null=null)

    def _row(self, value: Any) -> Conditioning:
        """What is kept of a value; encoded again where that is damaged."""
        found = self._store.row(value)
        if found is None:
            warn(f"what {value!r:.60} was encoded to is damaged in the cache: it is encoded again")
            self.fill([value])
            found = self._store.row(value)
        if found is None:
            raise UserError(
                f"what {value!r:.60} is encoded to cannot be kept in the cache, which reads otherwise than it was "
                "written: give a folder on another disk with cache=..., or cache=null to keep it in memory"
            )
        return found

    @property
    def has_null(self) -> bool:
        """Whether there is an unconditional half."""
        return self._null is not None

    def fill(self, values: Sequence[Any], *, share: tuple[int, int] = (0, 1), progress: bool = False) -> None:
        """Encodes what is not kept yet.

        Args:
            share: (i, n) for the i-th of n processes that each encode a part of it.
            progress: whether it is shown.

        Raises:
            UserError: the disk has no room for all of it.
        """
        missing = self._store.missing(values)
        place, of = share
        first, last = (len(values) * part // of for part in (place, place + 1))
        fresh = missing[(missing >= first) & (missing < last)]  # whatever the others have written by now
        if len(fresh):
            with self.awake(), tqdm(total=len(fresh), desc="encoding", disable=None if progress else True) as bar:
                self._store.keep(self._encoded([int(number) for number in fresh], values, len(missing), bar))

    def refresh(self) -> None:
        """Finds what other processes have encoded."""
        self._store.refresh()

    def _encoded(
        self, numbers: Sequence[int], values: Sequence[Any], total: int, bar: "tqdm[Any]"
    ) -> Iterator[tuple[Any, Conditioning]]:
        """The values of these numbers with their rows, in batches; the first one shows what all of them take."""
        for start in range(0, len(numbers), PROMPTS_AT_ONCE):
            part = [values[number] for number in numbers[start : start + PROMPTS_AT_ONCE]]
            told = capture(self._pipe, self._form, self._asking.call(part), rows=len(part)).to("cpu")
            rows = [told.index(torch.tensor([i])) for i in range(len(part))]
            if not start:
                self._store.check_space(sum(map(bytes_of, rows)) * total // len(rows))
            yield from zip(part, rows, strict=True)
            bar.update(len(part))

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Within, the text encoders are on the denoiser's device; afterwards they are in main memory. It nests."""
        self._depth += 1
        wake(self._pipe)
        try:
            with awake(self._beside):
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


def identity(pipe: StockPipeline, form: CallForm, asking: Asking) -> str:
    """A hash of everything that a prompt's conditioning depends on but the prompt: encoders, sizes, call."""
    told = [
        type(pipe).__name__,
        diffusers.__version__,
        sorted(asking.size.items()),
        asking.argument,
        form,
        {name: value for name, value in network_of(pipe).config.items() if not name.startswith("_")},
    ]
    digest = digest_of(told, {})
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, PreTrainedTokenizerBase):
            digest.update(repr((name, ordered(_spelt_out(part)))).encode())
    for module in encoders_of(pipe):
        add(digest, module.state_dict())
    return digest.hexdigest()


def _spelt_out(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, ...]:
    """All that decides over the tokens of a prompt: tokenizers of one vocabulary may split a prompt otherwise."""
    rules: Any = sorted(tokenizer.get_vocab().items())
    if hasattr(tokenizer, "backend_tokenizer"):
        last_call = {"truncation": None, "padding": None}
        rules = json.loads(tokenizer.backend_tokenizer.to_str()) | last_call
    return rules, tokenizer.model_max_length, tokenizer.padding_side, tokenizer.chat_template
