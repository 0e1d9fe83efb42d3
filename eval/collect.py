"""One pass over an image set: what the chosen metrics need of every image is collected, and nothing else."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from tqdm import tqdm

from fastgen.errors import UserError

from .columns import COLUMNS, Eyes, View
from .images.decode import ImageBatch
from .measures.frechet import Moments
from .measures.spectrum import MIN_SIDE, SpectrumMean
from .networks.extractors import FeatureExtractor, Sight
from .rows import Flagged, Skipped


@dataclass(frozen=True, eq=False)
class Seen:
    """What was collected of an image set, or of one process's share of it.

    Attributes:
        moments: moments of the features; None without an extractor.
        spectrum: None when images differ in size or are small.
        columns: tensors [N, ...] on the CPU, one row per image in order ("patches_0" ...: of the first images only);
            "numbers" says which.
        sizes: (height, width) that occur.
        pictures: the first images by their numbers, uint8 [3, H, W] each.
        skipped: images that could not be used.
        flagged: images that the checkers of their pipeline flagged.
        prompts: what was asked for, by the numbers in the column "conditions"; where that is kept.
    """

    count: int
    moments: Moments | None
    spectrum: SpectrumMean | None
    columns: Mapping[str, Tensor]
    sizes: frozenset[tuple[int, ...]]
    pictures: Mapping[int, Tensor]
    skipped: tuple[Skipped, ...]
    flagged: tuple[Flagged, ...] = ()
    prompts: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def join(cls, parts: Sequence["Seen"]) -> "Seen":
        """The shares of several processes in order, as if one had seen all."""
        filled = [part for part in parts if part.count]
        if not filled:
            raise UserError(
                "no image could be used; give others, or leave --skip-bad and --skip-flagged out to see why"
            )
        sizes = frozenset().union(*(part.sizes for part in filled))
        whole = len(sizes) == 1
        names = [name for name in filled[0].columns if _in_all(name, filled)]
        return cls(
            count=sum(part.count for part in filled),
            moments=_all_moments([part.moments for part in filled]),
            spectrum=_whole_spectrum([part.spectrum for part in filled]) if whole else None,
            columns={name: _stacked(name, filled) for name in names if whole or not name.startswith("patches")},
            sizes=sizes,
            pictures={number: picture for part in parts for number, picture in part.pictures.items()},
            skipped=tuple(skip for part in parts for skip in part.skipped),
            flagged=tuple(flagged for part in parts for flagged in part.flagged),
            prompts={number: prompt for part in parts for number, prompt in part.prompts.items()},
        )

    @property
    def patches(self) -> list[Tensor]:
        """Patches by pyramid level, finest first; empty where none were collected."""
        names = sorted((name for name in self.columns if name.startswith("patches")), key=lambda name: int(name[8:]))
        return [self.columns[name] for name in names]


class Collector:
    """Takes in images batch by batch.

    Args:
        wanted: names of `COLUMNS`, and "spectrum".
        first: number of the first image, of batches that do not say it.
        pictures: images with a number below this are kept.
        skip_flagged: images that are flagged are counted and shown, but not looked at.
    """

    def __init__(
        self,
        eyes: Eyes,
        wanted: frozenset[str],
        *,
        first: int,
        pictures: int,
        seed: int,
        skip_flagged: bool = False,
    ) -> None:
        self._eyes, self._wanted, self._seed = eyes, wanted, seed
        self._next, self._count, self._shown, self._skip_flagged = first, 0, pictures, skip_flagged
        extractor = eyes.extractor
        self._device = extractor.device if extractor is not None else torch.device("cpu")
        self._moments = None if extractor is None else Moments.zeros(extractor.dim, device=extractor.device)
        self._spectrum = SpectrumMean()
        self._sizes: set[tuple[int, ...]] = set()
        self._columns: dict[str, list[Tensor]] = {}
        self._pictures: dict[int, Tensor] = {}
        self._flagged: list[Flagged] = []
        self._prompts: dict[int, str] = {}

    def update(self, batch: ImageBatch) -> None:
        """Looks at a batch.

        Raises:
            UserError: features are not finite, or the device's memory is too small.
        """
        numbers = batch.numbers or tuple(range(self._next, self._next + len(batch.images)))
        self._next = numbers[-1] + 1
        self._pictures |= {n: image.cpu() for n, image in zip(numbers, batch.images, strict=True) if n < self._shown}
        flagged = [Flagged(n, flags) for n, flags in zip(numbers, batch.flags, strict=False) if flags]
        self._flagged += flagged
        if not (flagged and self._skip_flagged):
            self._look(batch, numbers)
        elif unflagged := [place for place, flags in enumerate(batch.flags) if not flags]:
            self._look(batch.only(unflagged), [numbers[place] for place in unflagged])

    def _look(self, batch: ImageBatch, numbers: Sequence[int]) -> None:
        images = batch.images.to(self._device)
        extractor = self._eyes.extractor
        sight = None if extractor is None else _see(extractor, images)
        if sight is not None and self._moments is not None:
            self._moments.update(sight.features)
        self._sizes.add(tuple(images.shape[-2:]))
        if batch.prompts is not None and batch.conditions is not None and "clip" in self._wanted:
            self._prompts |= zip(batch.conditions.tolist(), batch.prompts, strict=True)
        view = View(batch, images, sight, numbers, self._eyes, self._seed)
        for name in self._wanted & COLUMNS.keys() | {"numbers"}:
            for column, rows in COLUMNS[name](view).items():
                self._columns.setdefault(column, []).append(rows.cpu())
        if "spectrum" in self._wanted and self._has_spectrum:
            self._spectrum.update(images)
        self._count += len(images)

    def seen(self, skipped: Sequence[Skipped]) -> Seen:
        columns = {name: torch.cat(parts) for name, parts in self._columns.items() if self._is_whole(name, parts)}
        spectrum = self._spectrum if "spectrum" in self._wanted and self._has_spectrum else None
        return Seen(
            count=self._count,
            moments=None if self._moments is None else self._moments.to("cpu"),
            spectrum=spectrum,
            columns=columns,
            sizes=frozenset(self._sizes),
            pictures=self._pictures,
            skipped=tuple(skipped),
            flagged=tuple(self._flagged),
            prompts=self._prompts,
        )

    @property
    def _has_spectrum(self) -> bool:
        return len(self._sizes) == 1 and all(min(size) >= MIN_SIDE for size in self._sizes)

    def _is_whole(self, name: str, parts: Sequence[Tensor]) -> bool:
        """Patches need images of one size, every other column a row for each image."""
        if name.startswith("patches"):
            return len(self._sizes) == 1
        return sum(map(len, parts)) == self._count


def collect(
    batches: Iterator[ImageBatch], collector: Collector, *, total: int, title: str, skipped: Sequence[Skipped] = ()
) -> Seen:
    """Looks at every image once, with a progress bar of `total` images on a terminal.

    Raises:
        UserError: an image cannot be read; see also `Collector.update`.
    """
    with tqdm(total=total, desc=title, unit="image", disable=None) as bar:
        for batch in batches:
            collector.update(batch)
            bar.update(len(batch.images))
    return collector.seen(skipped)


def _see(extractor: FeatureExtractor, images: Tensor) -> Sight:
    try:
        return extractor.see(images)
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{extractor.device} has too little memory to look at {len(images)} images at once; choose a smaller "
            "--batch-size"
        ) from error


def _stacked(name: str, parts: Sequence[Seen]) -> Tensor:
    return torch.cat([part.columns[name] for part in parts if name in part.columns])


def _in_all(name: str, parts: Sequence[Seen]) -> bool:
    """Patches are kept of the first images alone, so that a later share may have none."""
    return name.startswith("patches") or all(name in part.columns for part in parts)


def _all_moments(parts: Sequence[Moments | None]) -> Moments | None:
    known = [part for part in parts if part is not None]
    if not known:
        return None
    whole = Moments.zeros(len(known[0].mean))
    for part in known:
        whole.merge(part)
    return whole


def _whole_spectrum(parts: Sequence[SpectrumMean | None]) -> SpectrumMean | None:
    if any(part is None for part in parts):
        return None
    whole = SpectrumMean()
    for part in parts:
        if part is not None:
            whole.merge(part)
    return whole
