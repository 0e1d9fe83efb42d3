"""Pictures of a run at seeds that never change: the generator's, the teacher's, and what every role believes."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from PIL import Image
from torch import Tensor

from ..config.schema import Config
from ..engine.previews import Shown
from ..engine.stage import Stage
from ..errors import warn
from ..files import atomic_json
from ..limits import read_json
from ..models.calls import look
from ..models.denoiser import NetworkDenoiser
from ..models.pipelines.refusal import cause
from ..objectives import ScoreMatching
from ..objectives.parts.guidance_laws import Fixed
from ..sampling.call import steps_in_words
from ..sampling.pictures import grid, labelled_rows
from ..sampling.sampler import seeded_noise
from .collapse import alarms, health_of
from .student import Student

PREVIEW_IMAGES = 20
FEW_FROM = 4 * 64 * 64  # values of a sample above which fewer previews are drawn
BELIEFS = 8
"""Samples of which is shown what roles believe."""
NOISED_TO = 0.5
"""Process time at which they are asked."""
LEAST = 64  # pixels below which pictures in a panel are magnified
FOLDER, BELIEVED, TEACHER = "previews", "beliefs", "teacher"


@dataclass(frozen=True)
class Record:
    """What a picture shows; beside it as JSON.

    Attributes:
        stage, images: where the run stood; of the teacher's none.
        what: whose samples they are, in words.
        columns, width, height: of the grid, and of one picture in it in pixels.
        seeds, captions: of its pictures, row by row.
        health: see `health_of`.
        beliefs: the picture of what roles believe, if there is one.
    """

    what: str
    columns: int
    width: int
    height: int
    seeds: tuple[int, ...]
    captions: tuple[str, ...]
    health: Mapping[str, float]
    stage: str | None = None
    images: int | None = None
    beliefs: str | None = None


class Gallery:
    """The pictures of a run.

    Args:
        student: what they are of.
    """

    def __init__(self, student: Student) -> None:
        self._student, self._folder = student, student.config.out / FOLDER
        large = torch.Size(student.pipeline.shape).numel() > FEW_FROM
        self._count = BELIEFS if large else PREVIEW_IMAGES
        self._silent = False

    def __call__(self, stage: Stage, name: str) -> Shown:
        """A grid of the generator's samples at the first declared step count, and what the roles believe of some."""
        student, generator = self._student, stage.roles.generator
        samples = [student.drawn(generator, part) for part in student.batches(self._count)]
        pictures = torch.cat([student.pictures(part) for part in samples])
        self._warn(stage, name, pictures)
        record = self._record(pictures, f"student, {steps_in_words(len(student.plan.grids[0]))}")
        record = replace(record, stage=stage.config.name, images=stage.position.images)
        shown = {}
        if believed := self._believed(stage, torch.cat(samples)[:BELIEFS]):
            panel = labelled_rows(believed, scale=max(1, LEAST // record.width))
            place = student.config.out / BELIEVED
            place.mkdir(exist_ok=True)
            panel.save(place / f"{name}.png")
            record, shown = replace(record, beliefs=f"{name}.png"), {"previews/beliefs": panel}
        shown["previews/student"] = self._saved(name, pictures, record)
        return Shown(shown, {f"health/{key}": value for key, value in record.health.items()})

    def teacher(self) -> Image.Image | None:
        """The teacher's samples of the same seeds; drawn once, None where they cannot be.

        The teacher's network must be as it was loaded: before roles are built on it.
        """
        student, spec = self._student, self._student.config.evaluate
        guidance = guidance_of(student.config)
        what = f"teacher, {steps_in_words(spec.teacher_steps)}" + (f", guidance {guidance:g}" if guidance != 1 else "")
        file = self._folder / f"{TEACHER}.png"
        if file.exists():
            with Image.open(file) as found:
                return found.copy()
        model = student.pipeline.denoiser()
        try:
            with torch.no_grad():
                drawn = [self._of_teacher(model, part, guidance) for part in student.batches(self._count)]
            pictures = torch.cat(drawn)
            return self._saved(TEACHER, pictures, self._record(pictures, what))
        except Exception as error:
            warn(f"the teacher's samples could not be drawn beside the student's ({cause(error)}); training goes on")
            return None

    def _warn(self, stage: Stage, name: str, pictures: Tensor) -> None:
        """Says where a generator that drew these pictures has collapsed."""
        student, numbers, more = self._student, [*range(len(pictures))], self._more_of_the_first()
        if more:
            drawn = student.pictures(student.drawn(stage.roles.generator, more))
            pictures, numbers = torch.cat([pictures, drawn]), [*numbers, *more]
        captions, net = [*self._captions(numbers)], stage.roles.network("generator").net
        for alarm in alarms(pictures, net, captions=captions, usual=self._usual()):
            warn(f"{name}: {alarm}")

    def _more_of_the_first(self) -> range:
        """Numbers of further samples with the first picture's prompt or class, if no two pictures share theirs."""
        student = self._student
        kinds = len(student.classes if student.pipeline.kind == "label" else student.config.prompts or ())
        return range(kinds, 4 * kinds, kinds) if kinds >= self._count else range(0)

    def _usual(self) -> float | None:
        """The spread of the teacher's pictures, where there are any."""
        file = self._folder / f"{TEACHER}.json"
        return float(read_json(file)["health"]["spread"]) if file.exists() else None

    def _of_teacher(self, model: NetworkDenoiser, part: range, guidance: float) -> Tensor:
        student, steps = self._student, self._student.config.evaluate.teacher_steps
        cond = student.condition(part)
        return student.pictures(student.sample_teacher(model, cond, seeds=part, steps=steps, guidance=guidance))

    def _record(self, pictures: Tensor, what: str) -> Record:
        seeds = tuple(range(len(pictures)))
        return Record(
            what=what,
            columns=math.ceil(len(pictures) / 2),
            width=pictures.shape[-1],
            height=pictures.shape[-2],
            seeds=seeds,
            captions=tuple(self._captions(seeds)),
            health=health_of(pictures),
        )

    def _captions(self, seeds: Sequence[int]) -> Iterator[str]:
        asked = self._student.asked(seeds)
        for place, seed in enumerate(seeds):
            if asked.prompts is not None:
                yield asked.prompts[place]
            else:
                yield f"seed {seed}" if asked.labels is None else f"class {int(asked.labels[place])}"

    def _saved(self, name: str, pictures: Tensor, record: Record) -> Image.Image:
        self._folder.mkdir(parents=True, exist_ok=True)
        picture = grid(pictures / 2 + 0.5, columns=record.columns)
        picture.save(self._folder / f"{name}.png")
        atomic_json(self._folder / f"{name}.json", asdict(record))
        return picture

    def _believed(self, stage: Stage, samples: Tensor) -> dict[str, Tensor]:
        """The samples, and what each score takes them for once they are noised, as pictures in [0, 1].

        Nothing where networks lie on several processes, and where a score cannot be asked so.
        """
        scores = [role for role in ("real_score", "fake_score") if role in stage.roles]
        if not scores or stage.sharded or stage.config.train.sequence_parallel > 1 or self._silent:
            return {}
        try:
            cond = self._student.condition(range(len(samples))).to(samples.device)
            noise = seeded_noise(range(len(samples)), self._student.pipeline.shape, samples.device)()
            t = torch.full((len(samples),), NOISED_TO, dtype=torch.float64, device=samples.device)
            noised = stage.roles.process.renoise(samples, t, noise)
            rows = {"generator": samples} | {
                role: look(stage.roles.network(role), noised, t, cond).x0.to(samples.dtype) for role in scores
            }
            return {role: (self._student.pictures(x0) / 2 + 0.5).clamp(0, 1) for role, x0 in rows.items()}
        except Exception as error:
            warn(f"what the scores believe could not be shown ({cause(error)}); training goes on")
            self._silent = True
            return {}


def guidance_of(config: Config) -> float:
    """The guidance under which the teacher is shown: as it is measured, or what the student learns of it."""
    objective = config.stages[-1].objective
    law = objective.guidance if isinstance(objective, ScoreMatching) else None
    if config.evaluate.teacher_guidance == 1 and isinstance(law, Fixed):
        return law.scale
    return config.evaluate.teacher_guidance
