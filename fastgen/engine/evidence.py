"""What a batch held and which of it, or of the weights, is not finite: looked at again once something broke."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import Items
from ..errors import first_few
from ..models.calls import look
from ..models.conditioning import Conditioning
from ..models.roles import DENOISERS
from ..seeds import stream
from .feed import Feed
from .stage import Stage

NAMED = 8
"""Things that a sentence names."""


@dataclass(frozen=True)
class Evidence:
    """A whole batch as the data has it.

    Args:
        numbers: of its samples in the data.
        names: of their files or rows, where they have any.
        items: images, labels and prompts.
        pairs: noises and samples of the teacher by name, where they were read.
    """

    numbers: list[int]
    names: list[str]
    items: Items
    pairs: dict[str, Tensor]

    def told(self, places: Iterable[int] | None = None) -> list[str]:
        """The samples at these places, or all of them, in words."""
        labels, chosen = self.items.labels, range(len(self.numbers)) if places is None else places
        classes = ["" if labels is None else f" (class {int(labels[place])})" for place in chosen]
        return [f"{(self.names or self.numbers)[place]}{of}" for place, of in zip(chosen, classes, strict=True)]

    def tensors(self, most: int) -> dict[str, Tensor]:
        """The tensors of its first samples, as many as fit in `most` bytes."""
        held = {"images": self.items.images, "labels": self.items.labels, **self.pairs}
        found = {name: value for name, value in held.items() if value is not None}
        size = sum(value[:1].nbytes for value in found.values())
        return {name: value[: most // max(size, 1)].contiguous() for name, value in found.items()}

    def conditioning(self, feed: Feed, part: slice) -> Conditioning:
        """What networks are told of some of its samples."""
        labels, prompts = self.items.labels, self.items.prompts
        count = len(self.numbers[part])
        told = feed.view(self.items).condition(
            count,
            labels=None if labels is None else labels[part],
            prompts=None if prompts is None else prompts[part],
        )
        return told.to(feed.device)


def evidence_of(feed: Feed, positions: range) -> Evidence:
    """What stands at some positions of the stream."""
    loader, rows, pairs = feed.loader, list(positions), dict[str, Tensor]()
    if feed.pairs is not None:
        rows = [position % len(feed.pairs.eps) for position in positions]
        loader, pairs = feed.pairs.loader, {"eps": feed.pairs.eps[rows], "x0": feed.pairs.x0[rows]}
    numbers = loader.numbers(rows)
    return Evidence(numbers, loader.names(numbers), loader.again(rows), pairs)


def causes(stage: Stage, evidence: Evidence) -> Iterator[str]:
    """Sentences: which weights of which role are not finite, and about which samples a role says what is not."""
    spoilt = [f"{where} of {role}" for role, member in stage.roles.members.items() for where in not_finite(member)]
    if spoilt:
        yield f"Not finite: {first_few(spoilt, NAMED)}."
    for role in DENOISERS:
        if role in stage.roles and (bad := _blind(stage, role, evidence)):
            yield f"Where {role} is not finite: {first_few(evidence.told(bad), NAMED)}{_of_one_class(evidence, bad)}."


def not_finite(module: nn.Module) -> Iterator[str]:
    """The parameters and buffers of a module that are not finite, with the rows where these are few."""
    net = getattr(module, "net", module)
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            by_row = (~tensor.isfinite()).reshape(len(tensor) if tensor.ndim else 1, -1).any(dim=1)
            rows = [place for place, bad in enumerate(by_row.tolist()) if bad]
            yield f"{name} in row {', '.join(map(str, rows))}" if len(rows) < min(NAMED, len(by_row)) else name


def _blind(stage: Stage, role: str, evidence: Evidence) -> list[int]:
    """The places in a batch of the samples about which a role's belief is not finite."""
    feed, network, found = stage.feed, stage.roles.network(role), list[int]()
    for start in range(0, len(evidence.numbers), stage.micro):
        cond = evidence.conditioning(feed, slice(start, start + stage.micro))
        count = min(stage.micro, len(evidence.numbers) - start)
        noise = torch.randn(
            (count, *feed.view(evidence.items).shape), generator=stream(feed.device, "evidence"), device=feed.device
        )
        t = torch.full((count,), 0.5, dtype=torch.float64, device=feed.device)
        belief = look(network, noise, t, cond).x0
        found += [start + place for place, x0 in enumerate(belief) if not bool(x0.isfinite().all())]
    return found


def _of_one_class(evidence: Evidence, places: list[int]) -> str:
    labels = evidence.items.labels
    classes = set() if labels is None else set(labels[places].tolist())
    return f", all of class {classes.pop()}" if len(classes) == 1 else ""
