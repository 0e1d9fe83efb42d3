"""What a run left, reported: the student after each stage beside its teacher."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from eval.evaluate import compare, floor
from eval.images.decode import ImageBatch
from eval.images.drawing import DrawnSource
from eval.measure import Side
from eval.processes import Processes
from eval.report.showcase import contact_sheet
from eval.rows import Origin, Role
from eval.session import open_session

from ...engine.run import Trained
from ...errors import say
from ...models.denoiser import NetworkDenoiser
from ...models.head_bank import Headed
from ...sampling.call import steps_in_words
from ...sampling.sampler import SAMPLES_AT_ONCE
from ..student import Student
from .view import batch_of, options_of, protocol_of

SHOWN = 20  # pictures of a row


def report(student: Student, trained: Trained) -> None:
    """Teacher and student side by side: the student after each stage, the teacher at many steps and at as few."""
    protocol, folder = protocol_of(student.config.evaluate), student.config.out / "report"
    assert protocol.own is not None
    options = options_of(
        student.config.evaluate,
        num=protocol.own().total,
        batch_size=SAMPLES_AT_ONCE,
        device=str(student.device),
        gallery=SHOWN,
        out=folder,
    )
    written = compare(open_session(options, {}, Processes()), _sides(student, trained))
    assert written is not None
    sheet = folder / f"{options.protocol}.png"
    contact_sheet(written, folder).save(sheet)
    say(f"picture: {sheet}")


def _sides(student: Student, trained: Trained) -> Iterator[Side]:
    spec, teacher, few = student.config.evaluate, student.pipeline.denoiser(), len(student.plan.grids[0])
    halves = protocol_of(student.config.evaluate).halves
    if halves is not None:
        yield floor(*halves(student.config.seed))
    for steps in dict.fromkeys((spec.teacher_steps, few)):
        sampled = partial(student.sample_teacher, teacher, steps=steps, guidance=spec.teacher_guidance)
        yield _side(student, "teacher", f"teacher, {steps_in_words(steps)}", teacher, steps, sampled)
    for name, weights in trained.weights.items():
        model = student.generator(weights)
        yield _side(student, "student", f"student after {name}", model, few, partial(student.sample, model))


def _side(
    student: Student,
    role: Role,
    title: str,
    model: NetworkDenoiser | Headed,
    steps: int,
    sampled: Callable[..., Tensor],
) -> Side:
    """A row of what is drawn by (conditioning, seeds) -> samples."""

    def draw(seeds: Sequence[int], numbers: Sequence[int]) -> ImageBatch:
        return batch_of(student, sampled(student.condition(numbers), seeds=seeds), numbers)

    def asked(numbers: Sequence[int]) -> dict[str, Any]:
        items = student.asked(numbers)
        return {"labels": items.labels.tolist()} if items.labels is not None else {"prompts": items.prompts}

    source = DrawnSource(
        origin=Origin(f"{student.config.evaluate.protocol} {role}", "pipeline", first_seed=0, dtype="float32"),
        steps=steps,
        draw=draw,
        asked=asked,
        network=model.net,
        device=student.device,
        batch_size=SAMPLES_AT_ONCE,
    )
    return Side(title.replace(",", "").replace(" ", "-"), role, title, (source,))
