"""A config for a pipeline and a card, chosen by rules and by what `fastgen plan` counts, written with its reasons.

What a pipeline says of itself decides its guidance, its sampler and the space of its fake score. How the step is
carried out is one of `WAYS`, of which the first is chosen that the card holds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from ..config.yaml_file import load
from ..errors import UserError
from ..export.seeding import hands_generator_on
from ..models.pipelines.arguments import default_guidance, frames_argument
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.published import PUBLISHED, published
from ..planning.cards import GIB, H100, Card
from ..planning.forecast import Forecast
from ..process import Flow
from .costs import forecast_of, teacher_without_weights

OWN = 0.95
"""Share of the memory on a card's label that PyTorch can have."""
SHORTER = (0.6, 0.4, 0.2)
"""What a video's frames are cut to where nothing else makes it fit."""
Prefer = Literal["quality", "speed"]


@dataclass(frozen=True)
class Way:
    """A way to carry out a step: settings, and what they do in words."""

    said: str
    rank: int = 64
    memory: str = "ample"
    train: dict[str, Any] = field(default_factory=dict)


_AGAIN = {"gradient_checkpointing": True}
WAYS = (
    Way("four images at a time, nothing recomputed", train={"micro_batch": 4}),
    Way("four images at a time, blocks recomputed in the backward pass", train={"micro_batch": 4, **_AGAIN}),
    Way("one image at a time, blocks recomputed", train={"micro_batch": 1, **_AGAIN}),
    Way(
        "one image at a time, blocks recomputed, weights in main memory between their calls",
        memory="low",
        train={"micro_batch": 1, **_AGAIN},
    ),
    Way(
        "one image at a time, blocks recomputed, weights in main memory between their calls, LoRAs of rank 16",
        rank=16,
        memory="low",
        train={"micro_batch": 1, **_AGAIN},
    ),
)
"""From the fastest to the leanest."""


@dataclass(frozen=True)
class Wish:
    """What a person has and wants.

    Args:
        pipeline: short name of a known pipeline, a hub id, or a folder.
        memory: of the card, in GiB.
        data: text file of prompts, or a folder of images with captions where `images`.
        images: whether the data are images.
        steps: of the student.
        prefer: quality, or a shorter training.
        size: height, width and frames, where not the pipeline's own.
        out: folder of the run; one named after the pipeline where not given.
    """

    pipeline: str
    memory: float
    data: Path = Path("prompts.txt")
    images: bool = False
    steps: tuple[int, ...] = (4,)
    prefer: Prefer = "quality"
    size: dict[str, int] = field(default_factory=dict)
    out: Path | None = None

    @property
    def teacher(self) -> str:
        """The folder or hub id."""
        return PUBLISHED[self.pipeline].hub if self.pipeline in PUBLISHED else self.pipeline

    @property
    def name(self) -> str:
        """What the run is called."""
        known = published(self.teacher)
        return known.name if known else Path(self.teacher).name

    @property
    def run(self) -> str:
        """The run's folder."""
        return str(self.out or Path("runs") / f"{self.name}_{max(self.steps)}step")

    @property
    def card(self) -> Card:
        """The card, as `fastgen plan` knows one of its memory."""
        return H100.of(OWN * self.memory)


@dataclass(frozen=True)
class Preset:
    """What was chosen.

    Args:
        settings: of the config.
        way: how a step is carried out.
        forecast: what it costs.
    """

    wish: Wish
    settings: dict[str, Any]
    way: Way
    forecast: Forecast

    @property
    def text(self) -> str:
        """The config with its reasons, as YAML."""
        return "".join(f"{line}\n" for line in _lines(self))


def choose(wish: Wish, *, said: Callable[[str], None] = lambda _: None) -> Preset:
    """The fastest way that the card holds, counted without weights.

    Args:
        said: told what is counted, one line each.

    Raises:
        UserError: nothing that is known here fits the card, or the pipeline's configs cannot be had.
    """
    told = _told(wish)

    @cache
    def counted(place: int, share: float) -> Preset:
        way = WAYS[place]
        settings = _settings(wish, told, way, share)
        forecast = forecast_of(load(settings), 0, card=wish.card, recipes=Path())
        said(f"{way.said}: {wish.card.needs(forecast) / GIB:.1f} GiB")
        return Preset(wish, settings, way, forecast)

    def fits(preset: Preset) -> bool:
        return wish.card.holds(preset.forecast)

    last = len(WAYS) - 1
    shares = (1.0, *SHORTER) if "frames" in told.size else (1.0,)
    share = next((share for share in shares if fits(counted(last, share))), None)
    if share is None:
        leanest = counted(last, shares[-1]).forecast
        least, encoders = wish.card.needs(leanest) / GIB, leanest.encoding / GIB
        raise UserError(
            f"{wish.teacher} does not fit a card of {wish.memory:g} GB: its leanest training known here needs "
            f"{least:.1f} GiB, of which its text encoders {encoders:.1f}, and PyTorch can have "
            f"{OWN * wish.memory:.1f}: "
            "give a smaller size, another pipeline, or a larger card"
        )
    low, high = 0, last  # the last one fits
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(counted(middle, share)) else (middle + 1, high)
    return counted(low, share)


@dataclass(frozen=True)
class _Told:
    """What a pipeline says of itself."""

    flow: bool
    guidance: float
    generator: bool
    size: dict[str, int]


def _told(wish: Wish) -> _Told:
    pipeline = teacher_without_weights(load(_bare(wish)), Path())
    return _Told(
        flow=isinstance(pipeline.reading.process, Flow),
        guidance=default_guidance(pipeline.pipe) if pipeline.has_null else 1.0,
        generator=hands_generator_on(pipeline.pipe),
        size=_size(wish, pipeline),
    )


def _size(wish: Wish, pipeline: Pipeline) -> dict[str, int]:
    """Height, width and frames: as wished, as published, else the pipeline's own default, which is not written."""
    known = published(wish.teacher)
    size = {**(known.size if known else {}), **wish.size}
    return size if frames_argument(pipeline.pipe) else {name: size[name] for name in size if name != "frames"}


def _bare(wish: Wish) -> dict[str, Any]:
    known = published(wish.teacher)
    size = {**(known.size if known else {}), **wish.size}
    bare = replace(wish, images=False, data=Path("prompts.txt"))
    return _settings(bare, _Told(flow=True, guidance=1.0, generator=True, size=size), WAYS[0], 1.0)


def _settings(wish: Wish, told: _Told, way: Way, share: float) -> dict[str, Any]:
    size = dict(told.size)
    if "frames" in size:
        size["frames"] = shorter(size["frames"], share)
    thorough, micro = wish.prefer == "quality", way.train["micro_batch"]
    batch = 16 if thorough else 4
    sampler = "renoise" if told.generator or max(wish.steps) == 1 else "ode"
    pixels = size.get("height") or size.get("width") or 1024
    data = {"source": "folder", "path": str(wish.data), "size": pixels}
    return {
        "out": wish.run,
        "teacher": {"path": wish.teacher},
        "student": {"steps": list(wish.steps), "sampler": sampler, **size},
        "sharing": "lora",
        "lora": {"rank": way.rank},
        **({"memory": way.memory} if way.memory != "ample" else {}),
        "data": data if wish.images else {"source": "prompts", "path": str(wish.data)},
        "objective": _objective(wish, told),
        "train": {
            "images": 80_000 if thorough else 20_000,
            "batch": batch,
            "micro_batch": min(micro, batch),
            "precision": "bf16",
            **{name: value for name, value in way.train.items() if name != "micro_batch"},
            "ema": 0.995 if thorough else 0.99,
            "optim": {"lr": 5e-5, "betas": [0.0, 0.999], "clip": 10.0, "warmup": 100},
        },
    }


def _objective(wish: Wish, told: _Told) -> dict[str, Any]:
    if wish.images and wish.prefer == "speed":
        return {"name": "lcm", "teacher_guidance": told.guidance, "ema": 0.0}
    gan = {} if wish.images else {"gan": 0}
    space = {"fake_space": "flow"} if told.flow else {}
    return {"name": "dmd2", "guidance": told.guidance, "ratio": 5, **gan, **space}


def shorter(frames: int, share: float) -> int:
    """A share of a video's frames, one more than a multiple of eight, which video autoencoders take."""
    return frames if share == 1 else max(1, round(frames * share / 8)) * 8 + 1


def _lines(preset: Preset) -> Iterator[str]:
    wish, settings, way = preset.wish, preset.settings, preset.way
    objective, need = settings["objective"], wish.card.needs(preset.forecast) / GIB
    counts = ", ".join(map(str, wish.steps))
    what = "DMD2 (arXiv:2405.14867)" if objective["name"] == "dmd2" else "LCM (arXiv:2310.04378)"
    yield f"# {wish.name} to {counts} steps as a LoRA by {what}, for one card of {wish.memory:g} GB."
    yield f"# Chosen by counting: {way.said}; {need:.1f} GiB (`fastgen plan`)."
    yield "# Guidance and size are the pipeline's own; rates and budget are guesses, not measured on this pipeline."
    notes = {
        "teacher": "hub id or folder; loras: [{path: style.safetensors, weight: 0.8}] for LoRAs of yours",
        "student": "the first count is the default of `fastgen sample`",
        "sharing": "teacher, fake score and generator are LoRAs on one frozen network",
        "memory": "what is not computed with stays in main memory: slower",
        "data": "a.png with its caption in a.txt" if wish.images else "one prompt a line; no images are needed",
        "objective": "what is minimised: `fastgen list objectives`",
        "train": "images: the budget, in samples; batch: per update, micro_batch of them at once",
    }
    for name, value in settings.items():
        note = f"  # {notes[name]}" if name in notes else ""
        if name == "train":
            yield f"train:{note}"
            yield from (f"  {key}: {_flow(entry)}" for key, entry in value.items())
        else:
            yield f"{name}: {_flow(value)}{note}"


def _flow(value: Any) -> str:
    """A value on one line of YAML."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6)
    return text.removesuffix("\n").removesuffix("\n...")
