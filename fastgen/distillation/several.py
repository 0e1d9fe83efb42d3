"""Several students, each trained by a run of its own on its part of the conditions (MSD, arXiv:2410.23274)."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from ..config.schema import Config
from ..data import Owned, Selection
from ..disk import check_writable
from ..engine.distributed import alone, meet, shared
from ..errors import UserError, say
from ..export.card import several_card
from ..files import atomic_file, atomic_text
from ..models.pipelines.students import Students, nearest
from ..models.pipelines.text_embedding import text_embeddings
from ..seeds import seed_of
from .teacher import load_pipeline

MOST_POINTS = 100_000  # embeddings that centres are found among, evenly spread
SHOWN = 3  # prompts of each student
PARTS = "parts.safetensors"


def runs_of(config: Config) -> tuple[Config, ...]:
    """The runs that a config asks for, one for each student; of prompts that are not divided yet, each on all of them.

    Student k is trained in OUT/k, and exported to a folder k in that of the export.

    Raises:
        UserError: there are fewer classes than students, or nothing to divide.
    """
    if config.students is None:
        return (config,)
    return tuple(_run(config, number, only) for number, only in enumerate(_selections(config)))


class Train(Protocol):
    """Carries a run out."""

    def __call__(self, config: Config, *, resume: bool) -> None: ...


def each_student(config: Config, train: Train, *, resume: bool) -> None:
    """Divides the conditions, trains one student after the other, and puts them together in the export's folder.

    Args:
        config: with `students`.
        train: carries a run out.
        resume: whether runs that were begun go on.

    Raises:
        UserError: as `runs_of`, or by a run.
    """
    alone(lambda: check_writable(config.out, "out"))
    if not _by_class(config):
        alone(lambda: _divide(config, resume=resume))
        meet()
    runs = runs_of(config)
    for number, run in enumerate(runs):
        say(f"student {number} of {len(runs)}, {_told(run)}: {run.out}")
        train(run, resume=resume and (run.out / "checkpoints").is_dir())
    alone(lambda: _put_together(config, runs))


def _by_class(config: Config) -> bool:
    return config.data.num_classes is not None and config.data.prompts is None


def _selections(config: Config) -> list[Selection | None]:
    """What each student is trained on; None for prompts that are not divided yet."""
    divided, classes = config.students, config.data.num_classes
    if _by_class(config):
        assert classes is not None
        if isinstance(divided, int):
            if divided > classes:
                raise UserError(f"students is {divided}, but there are {classes} classes: give at most one for each")
            divided = tuple(tuple(part.tolist()) for part in np.array_split(np.arange(classes), divided))
        _check_whole(divided or (), classes)
        return [Selection(classes=labels) for labels in divided or ()]
    if config.data.prompts is None:
        raise UserError("students divide classes or prompts, and the data has neither: leave students out")
    if not isinstance(divided, int):
        raise UserError("students lists classes, but the data has prompts: give the number of students")
    there = (config.out / PARTS).is_file()
    return [Selection(owned=Owned(config.out / PARTS, number)) if there else None for number in range(divided)]


def _check_whole(divided: Sequence[Sequence[int]], classes: int) -> None:
    listed = {label for labels in divided for label in labels}
    if wrong := listed.symmetric_difference(range(classes)):
        label = min(wrong)
        reason = "is in no list" if label < classes else f"is none of the {classes} classes of the data"
        raise UserError(f"students: class {label} {reason}: divide all classes, and no others")


def _run(config: Config, number: int, only: Selection | None) -> Config:
    """The run of one student."""
    export = config.export.model_copy(update={"path": config.exported / str(number)})
    own = {"students": None, "only": only, "out": config.out / str(number), "export": export}
    return config.model_copy(update=own)


def _told(run: Config) -> str:
    assert run.only is not None
    if run.only.classes is not None:
        return f"classes {', '.join(map(str, run.only.classes))}"
    prompts = run.prompts or ()
    return f"{len(prompts):,} items, such as {'; '.join(f'{text!r:.60}' for text in prompts[:SHOWN])}"


def _divide(config: Config, *, resume: bool) -> None:
    """Finds as many centres among the embeddings of the prompts, and says whose each item is."""
    from sklearn.cluster import KMeans

    prompts, count, file = config.data.prompts, config.students, config.out / PARTS
    if file.is_file() and resume:
        return
    if file.is_file():
        raise UserError(f"{config.out} already holds students: go on with them by --resume, or give another out=...")
    runs_of(config)
    assert prompts is not None
    assert isinstance(count, int)
    kinds = list(dict.fromkeys(prompts))
    if len(kinds) < count:
        raise UserError(f"students is {count}, but there are {len(kinds)} different prompts: give more, or fewer students")
    device = "cpu" if config.device == "cpu" or not torch.cuda.is_available() else "cuda"
    say(f"dividing {len(kinds):,} prompts among {count} students by their text embeddings")
    points = text_embeddings(load_pipeline(config, torch.device(device)), kinds)
    some = points[:: -(-len(points) // MOST_POINTS)].numpy()
    found = KMeans(count, n_init=10, random_state=seed_of(config.seed, "students") % 2**32).fit(some)
    centres = torch.from_numpy(found.cluster_centers_).float()
    owner = dict(zip(kinds, nearest(points, centres), strict=True))
    owners = torch.tensor([owner[prompt] for prompt in prompts])
    config.out.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as place:
        save_file({"centres": centres, "owners": owners}, place)


def _put_together(config: Config, runs: Sequence[Config]) -> None:
    """Says beside the students which of them is for what; from then on the folder is sampled as one."""
    selections = [run.only for run in runs]
    classes = tuple(only.classes for only in selections if only is not None and only.classes is not None)
    centres = load_file(config.out / PARTS)["centres"] if not classes else None
    students = Students(tuple(run.exported.name for run in runs), classes or None, centres)
    atomic_text(config.exported / "README.md", several_card(students))
    students.write(config.exported)
    say(f"{config.exported} holds {len(runs)} students: `fastgen sample {config.exported}` asks each for what is its own")
