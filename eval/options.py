"""What a user asks an evaluation for; imports nothing heavy, so that --help stays fast."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

Colour = tuple[float, float, float]
"""One value per RGB channel."""

Kernel = Literal["bilinear", "bicubic"]
Precision = Literal["float32", "bfloat16", "float16", "autocast"]

ProtocolName = Literal["domain", "clean", "edm", "adm", "dinov2", "clip", "digits"]
PROTOCOL_NAMES: tuple[ProtocolName, ...] = get_args(ProtocolName)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The settings of one evaluation, under the names of the command line.

    Attributes:
        student, teacher: a pipeline folder, a hub id, or images as `reference`.
        base, stack: what a student lies on that is a LoRA, and the LoRAs between with their weights.
        reference: a folder, zip, parquet or tar file of images, a folder of tar shards, or statistics (.npz); None
            takes the real images that the protocol brings along.
        held_out: real images that are not in the reference: the floor.
        real_images: real images for pixel metrics where `reference` is a statistics file.
        protocol: network, resize and feature; see `eval.networks.protocols`.
        extractor: the protocol's weights: folder, file or hub name; None takes its own from the cache.
        metrics: names of metrics or of their figures; None takes the default ones.
        clip: folder or hub name of a CLIP model, for clip_score and cmmd.
        lpips: weights of torchvision's AlexNet, for lpips; None takes those in the cache if `metrics` asks for it.
        rewards: "name=folder" of models in the CLIP format.
        steps: step counts of the student; None takes those it was trained for.
        teacher_steps: step counts of the teacher, besides the student's own few.
        guidance: w of uncond + w (cond - uncond), 1 = none; None leaves it to the student's notes and the pipeline.
        negative_prompt, height, width, frames: the same for teacher and student; None leaves the size to the student's
            notes and then to the pipelines.
        prompts, labels: files of what to ask for, one per line, in turn; labels default to all classes in turn.
        num: images per row of the report.
        latency: batch sizes at which a pipeline's seconds per image are taken as well.
        seed: image i is drawn with seed + i.
        seeds: blocks of `num` seeds, one after the other, that a pipeline is measured on.
        device: "auto" or a torch device.
        fast: TF32 in the extractors; another identity, never compared with exact figures.
        skip_bad: leave out unreadable images and report them.
        skip_flagged: leave out of the figures what a pipeline's safety checker blackened; reported in any case.
        assertions: conditions such as "fid[4] < 5".
        gallery: pictures per row.
        timeout: seconds without a sign of life after which another process counts as lost, however long it measures.
    """

    reference: Path | None = None
    student: str | None = None
    teacher: str | None = None
    base: str | None = None
    stack: tuple[tuple[Path, float | None], ...] = ()
    held_out: Path | None = None
    real_images: Path | None = None
    protocol: ProtocolName = "domain"
    extractor: str | None = None
    extractor_sha256: str | None = None
    extractor_size: int | None = None
    extractor_range: tuple[float, float] | None = None
    extractor_mean: Colour | None = None
    extractor_std: Colour | None = None
    extractor_kernel: Kernel = "bilinear"
    extractor_antialias: bool = False
    metrics: tuple[str, ...] | None = None
    clip: str | None = None
    lpips: str | None = None
    rewards: tuple[str, ...] = ()
    steps: tuple[int, ...] | None = None
    teacher_steps: tuple[int, ...] = (50,)
    guidance: float | None = None
    teacher_guidance: float | None = None
    negative_prompt: str | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    prompts: Path | None = None
    labels: Path | None = None
    num: int = 10_000
    latency: tuple[int, ...] = ()
    seed: int = 0
    seeds: int = 1
    batch_size: int = 64
    workers: int = 4
    timeout: float = 300.0
    device: str = "auto"
    dtype: Precision = "float32"
    fast: bool = False
    allow_small: bool = False
    skip_bad: bool = False
    skip_flagged: bool = False
    assertions: tuple[str, ...] = ()
    gallery: int = 16
    save_stats: Path | None = None
    out: Path = Path("report")
    overwrite: bool = False

    @property
    def generated(self) -> tuple[str, ...]:
        """The paths of teacher and student, as far as they were given."""
        return tuple(path for path in (self.teacher, self.student) if path is not None)

    @property
    def wants_lpips(self) -> bool:
        """Whether LPIPS is measured: asked for by its weights, or by name."""
        return self.lpips is not None if self.metrics is None else not {"lpips", "lpips_ratio"}.isdisjoint(self.metrics)

    @property
    def first_seeds(self) -> range:
        """The first seed of every block."""
        return range(self.seed, self.seed + self.seeds * self.num, self.num)

    @property
    def reference_is_statistics(self) -> bool:
        return self.reference is not None and self.reference.suffix == ".npz"
