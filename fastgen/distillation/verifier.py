"""What a run wrote is held against the student as it was trained, where there is room for both to sample."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import NoRoomError, NotInPartsError, VerificationError, say, warn
from ..export.place import CPU, Place, give_back, needing_room
from ..export.rebuild import calls_for, conditions_for
from ..export.scheduler_export import SchedulerExport
from ..export.stops import difference, stops_of
from ..export.verify import Agreement, Export, Ours, verify
from ..models.contract import Denoiser
from ..models.made import Made
from ..models.pipelines.arguments import call_arguments
from ..models.pipelines.components import parts_of
from ..models.pipelines.notes import Notes
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.stock_pipeline import StockPipeline
from ..sampling.call import steps_in_words
from .student import Student


@dataclass(frozen=True)
class Written:
    """An export beside the network that it was made of.

    Args:
        export: what an isolated process loads.
        schedule: its scheduler, and the step counts that it serves.
        load: loads the pipeline as others do, for what it tells its denoiser, given a device and the parts that are
            not read.
        network: the trained one, float32.
        notes: what it says of the student.
        rounded: the network as its file holds it, where that is not exactly so.
    """

    export: Export
    schedule: SchedulerExport
    load: Callable[..., StockPipeline]
    network: Made
    notes: Notes
    rounded: Made | None = None

    @property
    def filed(self) -> Made:
        """The network as its file holds it."""
        return self.rounded or self.network


@dataclass(frozen=True)
class Trial:
    """Where an export is verified, and whether at a smaller size than the student's own."""

    place: Place
    smaller: bool = False


@dataclass(frozen=True)
class Verifier:
    """Holds what was written against the student as it was trained, and says what it finds.

    Args:
        student: student of the run.
        places: where the isolated process and then our sampler draw, in the order of trying.
        failures: what does not sample as it was trained, in words; added to.
        heads: step count -> weights of the last layer at its steps, where each has its own.
    """

    student: Student
    places: Sequence[Place]
    failures: list[str]
    heads: Mapping[int, Tensor]

    def __call__(self, written: Written) -> None:
        """Verifies one export; at a smaller size where the student's own needs more memory than any place has.

        One that cannot be in parts has the CPU for the last place.
        """
        reason, waiting = "", _trials(self.places)
        while waiting:
            trial = waiting.pop(0)
            try:
                with needing_room():
                    lines = self._verified(written, trial, reason)
            except NotInPartsError as error:
                reason, waiting = reason or error.reason, _trials([CPU])
            except NoRoomError as error:
                reason = reason or error.reason
            except VerificationError as error:
                warn(str(error))
                self.failures.append(str(error))
                return
            else:
                for line in lines:
                    say(line)
                if lines:
                    return
            give_back(trial.place.device)
        warn(
            f"{written.export.verified} is written, but it was not verified, which needs more memory than there is "
            f"here ({reason}): run `fastgen verify` on it where there is more"
        )

    def _verified(self, written: Written, trial: Trial, reason: str) -> list[str]:
        """What is to be said of each step count; nothing where there is no smaller size.

        Args:
            written: the export.
            trial: where and how it is verified.
            reason: why none before it was one, for a smaller size.
        """
        asked = self._asked(written, trial)
        if trial.smaller and not self._fits(asked, written.schedule):
            return []
        size = f" at {_in_words(asked.size)}, since its own size has no room here ({reason})" if trial.smaller else ""
        parts = "" if trial.place.whole else f", on {trial.place}"
        ours = self._ours(written, trial.place, asked)
        del asked  # whose encoders make room for the isolated process
        return [
            f"verified {written.export.verified} at {steps_in_words(found.steps)}{size}{parts}: {_told(found)}"
            for found in verify(written.export, written.schedule, ours, place=trial.place)
        ]

    def _asked(self, written: Written, trial: Trial) -> Pipeline:
        """The written pipeline under the teacher's reading; a network that is loaded already stands in for its own."""
        teacher, place = self.student.pipeline, trial.place
        here = next(teacher.network.parameters()).device.type == torch.device(place.device).type
        stand_in = parts_of(teacher.pipe, teacher.network if here else place.network(written.filed))
        return teacher.told_by(place.pipe(written.load, stand_in), smaller=trial.smaller)

    def _fits(self, asked: Pipeline, schedule: SchedulerExport) -> bool:
        """Whether there is a smaller size, and the scheduler stops there as at the student's own."""
        if asked.size == self.student.pipeline.size:
            return False
        there = {n: stops_of(asked.reading, asked.emitted(schedule.scheduler, n)) for n in schedule.steps}
        ours = self.student.stops
        return all(len(there[n]) == len(ours[n]) and not difference(ours[n], there[n]) for n in schedule.steps)

    def _ours(self, written: Written, place: Place, asked: Pipeline) -> Ours:
        arguments = {**call_arguments(asked.pipe, written.notes), **asked.size}
        calls, cond = calls_for(asked, arguments), conditions_for(asked).to(place.device)
        sampler, stops = self.student.config.student.sampler, self.student.stops
        ours = Ours(self._model(place, written.filed), cond, calls, sampler, stops, heads=self.heads)
        return ours if written.rounded is None else replace(ours, trained=self._model(place, written.network))

    def _model(self, place: Place, network: Made) -> Callable[[], Denoiser]:
        return lambda: self.student.pipeline.speaking(place.network(network))


def _trials(tried: Sequence[Place]) -> list[Trial]:
    """Trials at these places, in the order of trying, and at last at a smaller size in the last one."""
    return [*map(Trial, tried), Trial(tried[-1], smaller=True)]


def _in_words(size: Mapping[str, Any]) -> str:
    """A size in words."""
    return " ".join(f"{name} {value}" for name, value in size.items() if not isinstance(value, bool))


def _told(agreement: Agreement) -> str:
    far = "" if agreement.rounding is None else f", {agreement.rounding:.1e} from the weights before rounding"
    return f"difference {agreement.difference:.1e}{far}"
