"""What the protocol of `evaluate` sees: of samples that a student draws, and of the images they are compared with."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from eval.collect import Collector, Seen
from eval.columns import Eyes
from eval.comparison import Metric
from eval.images.decode import ImageBatch, Reading, image_batches
from eval.images.sets import open_images
from eval.images.sources import eight_bit
from eval.networks.clip import Clip
from eval.networks.protocols import PROTOCOLS, Protocol, build_extractor
from eval.options import Options

from ...config.evaluate import EvaluateConfig
from ...config.schema import Config
from ...data.images import of_one_shape
from ...errors import UserError
from ...models.pipelines.arguments import in_turn
from ..student import Student

REFERENCES = 10_000  # training images looked at, evenly spread, where no reference is named
BATCH = 64


class NotFiniteError(Exception):
    """A sample holds NaN or infinity."""


def protocol_of(spec: EvaluateConfig) -> Protocol:
    """The protocol that `evaluate` names; it is not none."""
    assert spec.protocol != "none"
    return PROTOCOLS[spec.protocol]


def options_of(spec: EvaluateConfig, **settings: Any) -> Options:
    """What `eval` is told of the protocol, and what else it is to be told."""
    assert spec.protocol != "none"
    return Options(reference=spec.reference, protocol=spec.protocol, extractor=spec.extractor, **settings)


def eyes_of(student: Student) -> tuple[Eyes, str]:
    """The protocol's network, and its identity in words."""
    options = options_of(student.config.evaluate)
    extractor = build_extractor(options, student.device)
    clip = extractor if isinstance(extractor, Clip) else None
    return Eyes(extractor, clip), f"{options.protocol}: {extractor.identity}"


def seen_of(batches: Iterable[ImageBatch], eyes: Eyes, metrics: tuple[Metric, ...], *, first: int = 0) -> Seen:
    """What the metrics look at of some images, of which the first has that number."""
    wanted = frozenset(column for metric in metrics for column in metric.columns)
    collector = Collector(eyes, wanted, first=first, pictures=0, seed=0)
    for batch in batches:
        collector.update(batch)
    return collector.seen(())


def batch_of(student: Student, samples: Tensor, numbers: Sequence[int]) -> ImageBatch:
    """Samples as the protocol looks at them, with what their numbers ask for."""
    protocol, prompts = protocol_of(student.config.evaluate), student.config.prompts
    pictures = student.pictures(samples) if protocol.clipped else samples
    if not bool(pictures.isfinite().all()):
        raise NotFiniteError
    asked = student.asked(numbers)
    kinds = asked.labels if prompts is None else torch.tensor(in_turn(range(len(prompts)), numbers))
    conditions = torch.zeros(len(pictures), dtype=torch.int64) if kinds is None else kinds
    return ImageBatch(protocol.view(pictures / 2 + 0.5), asked.labels, asked.prompts, conditions)


def references(student: Student, eyes: Eyes) -> Iterator[ImageBatch]:
    """All images of the named reference, those of the protocol, or the training images, in one shape as samples are.

    Raises:
        UserError: there are none.
    """
    reference, own = student.config.evaluate.reference, protocol_of(student.config.evaluate).own
    if reference is not None:
        assert eyes.extractor is not None
        yield from image_batches(open_images(reference), Reading(BATCH, eyes.extractor.resizes))
    elif own is not None:
        yield from own().batches(range(own().total))
    elif student.config.data.has_images:
        yield from _training_images(student.config)
    else:
        raise UserError(
            "evaluate has nothing to compare with, because the data has no images: give evaluate.reference=FOLDER with "
            "real images, or samples of the teacher"
        )


def _training_images(config: Config) -> Iterator[ImageBatch]:
    data = of_one_shape(config.data)
    numbers = range(len(data)) if config.chosen is None else config.chosen.tolist()
    count = min(len(numbers), REFERENCES)
    spread = [numbers[i * len(numbers) // count] for i in range(count)]
    for start in range(0, count, BATCH):
        yield ImageBatch(eight_bit(data.items(spread[start : start + BATCH]).images / 2 + 0.5), None)
