"""Positions of the data stream into batches on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from ..data import Items, Loader
from ..data.texts import Reworded, instead
from ..errors import SilentError, UserError
from ..models.conditioning import Conditioning, sent
from ..models.pipelines.framing import Framing
from ..models.pipelines.latents import Latents
from ..models.pipelines.pipeline import Pipeline
from ..objectives import Batch, Needs, Pair
from .latents import KeptImages, samples_of


@dataclass(frozen=True)
class PairSet:
    """Teacher samples: row i was made from noise eps[i] under the conditioning of the loader's position i.

    Args:
        sha256: of the file that they are kept in.
    """

    eps: Tensor
    x0: Tensor
    loader: Loader
    sha256: str = ""

    def items(self, rows: Tensor) -> Items:
        """What the rows were conditioned on, with the images that stand there in the data."""
        parts = [self.loader.take(int(row), 1) for row in rows]
        images = [part.images for part in parts if part.images is not None]
        labels = [part.labels for part in parts if part.labels is not None]
        prompts = [part.prompts for part in parts if part.prompts is not None]
        return Items(
            images=torch.cat(images) if images else None,
            labels=torch.cat(labels) if labels else None,
            prompts=tuple(p for group in prompts for p in group) if prompts else None,
        )


@dataclass(frozen=True)
class _Read:
    """What stands at a range of positions: conditioning and pairs on the device, or on their way there."""

    positions: range
    cond: Conditioning
    real: Callable[[], Tensor] | None
    pair: Pair | None
    shape: tuple[int, ...]
    asked: Sequence[str]
    changed: Conditioning | None
    kept: Conditioning | None


@dataclass
class Feed:
    """Batches of a stage by position.

    Args:
        pipeline: the teacher, for conditioning and codec.
        loader: loader of the data.
        device: device of the networks.
        needs: what the objective reads.
        pairs: teacher samples, for objectives that need them.
        kept: samples of the data's images that were made before; then the loader reads no images.
        framing: where networks are told of each image's own size and crop; None leaves them what the call tells.
    """

    pipeline: Pipeline
    loader: Loader
    device: torch.device
    needs: Needs
    pairs: PairSet | None = None
    kept: KeptImages | None = None
    framing: Framing | None = None
    _ahead: _Read | None = field(default=None, init=False, repr=False)

    def prepare(self, position: int, size: int) -> None:
        """Reads a batch ahead, while the device works; what hinders that is said when the batch is asked for.

        Raises:
            SilentError: the data source does not answer.
        """
        try:
            self._ahead = self._read(range(position, position + size))
        except SilentError:
            raise
        except UserError:
            self._ahead = None

    def batch(self, position: int, size: int, *, rng: torch.Generator, shared_rng: torch.Generator) -> Batch:
        """The `size` samples from `position` of the stream on."""
        ahead, self._ahead = self._ahead, None
        positions = range(position, position + size)
        read = ahead if ahead is not None and ahead.positions == positions else self._read(positions)
        return Batch(
            read.cond,
            read.shape,
            rng,
            shared_rng,
            real=read.real,
            pairs=read.pair,
            asked=read.asked,
            changed=read.changed,
            kept=read.kept,
        )

    def _read(self, positions: range) -> _Read:
        pair, size = None, len(positions)
        if self.pairs is not None and self.needs.pairs:
            rows = torch.tensor(positions) % len(self.pairs.eps)
            items = self.pairs.items(rows)
            pair = Pair(sent(self.pairs.eps[rows], self.device), sent(self.pairs.x0[rows], self.device))
        else:
            items = self.loader.take(positions.start, size)
        real, view = None, self.view(items)
        if self.kept is not None:
            real = self._kept(self.kept.of(view), positions, view)
        elif self.needs.images and items.images is not None:
            real = partial(samples_of, items.images, view, self.device)
        cond = self._told(items, positions, framed=pair is None)
        asked, others = _words(items) if self.needs.rewards else (), self.needs.instead
        changed, kept = (
            None if other is None else self._told(other, positions, framed=pair is None)
            for other in (_in_context(items, self.needs.context), asked_instead(items, others) if others else None)
        )
        return _Read(positions, cond, real, pair, view.shape, asked, changed, kept)

    def _told(self, items: Items, positions: range, *, framed: bool) -> Conditioning:
        """The conditioning of these items, with the size and crop of their images where the network takes these."""
        cond = self.view(items).condition(len(positions), labels=items.labels, prompts=items.prompts)
        if self.framing is not None and framed:
            frames = self.loader.frames(items.numbers or self.loader.numbers(positions))
            cond = cond if frames is None else self.framing.told(cond, frames)
        return cond.to(self.device)

    def view(self, items: Items) -> Pipeline:
        """The pipeline as it is asked for samples of these items' bucket."""
        return self.pipeline if items.size is None else self.pipeline.sized(*items.size)

    def example(self) -> tuple[Tensor, Conditioning]:
        """An x_t [1, ...] of zeros and a conditioning."""
        items = self.loader.take(0, 1)
        view = self.view(items)
        cond = view.condition(1, labels=items.labels, prompts=items.prompts).to(self.device)
        return torch.zeros((1, *view.shape), device=self.device), cond

    def _kept(self, latents: Latents, positions: range, view: Pipeline) -> Callable[[], Tensor]:
        """A function that returns the cached samples of a batch, or encodes its images if some are not cached."""
        found = latents.rows(list(zip(self.loader.numbers(positions), self.loader.mirrored(positions), strict=True)))
        if found is not None:
            return partial(sent, found, self.device)
        images = self.loader.again(positions, images=True).images
        assert images is not None
        return partial(samples_of, images, view, self.device)


def _in_context(items: Items, words: str) -> Items | None:
    """The items with each prompt put into a context such as "{}, in oil"; None without a context or prompts."""
    if not words or items.prompts is None:
        return None
    return replace(items, prompts=tuple(Reworded(items.prompts, words)))


def asked_instead(items: Items, others: Sequence[tuple[str, str]]) -> Items:
    """The items with what is to be forgotten replaced: class numbers, or these words wherever a prompt has them."""
    labels, prompts = items.labels, items.prompts
    if labels is not None:
        number = {int(one): int(other) for one, other in others}
        labels = torch.tensor([number.get(label, label) for label in labels.tolist()])
    if prompts is not None:
        prompts = tuple(instead(prompt, others) for prompt in prompts)
    return replace(items, labels=labels, prompts=prompts)


def _words(items: Items) -> Sequence[str]:
    """What each item is asked for: its prompt, or its label in digits; nothing where there is neither."""
    if items.prompts is not None:
        return items.prompts
    return () if items.labels is None else [str(label) for label in items.labels.tolist()]
