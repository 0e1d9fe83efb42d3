"""Several students, each trained by a run of its own on its part of the conditions (MSD, arXiv:2410.23274)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..config.schema import Config
from ..data import Owned, Selection
from ..disk import check_writable
from ..engine.distributed import broadcast, is_first, on_first
from ..errors import UserError, say
from ..export.card import several_card
from ..files import atomic_file, atomic_text
from ..models.pipelines.students import Students, nearest
from ..models.pipelines.text_embedding import text_embeddings
from ..seeds import seed_of
from .output import check_outputs, refuse_folder
from .teacher import load_pipeline

PARTS = "parts.safetensors"
MOST_POINTS = 100_000  # embeddings that centres are found among, evenly spread
STARTS = 10  # of k-means, of which the best counts
SHOWN = 3  # prompts of each student


class Train(Protocol):
    """Carries a run out."""

    def __call__(self, config: Config, *, resume: bool) -> None: ...


def runs_of(config: Config) -> tuple[Config, ...]:
    """The runs that a config asks for: itself, or one for each of its students.

    Student k is trained in OUT/k, and exported to a folder k in that of the export. Until prompts are divided, the run
    of each is on all of them.

    Raises:
        UserError: the data cannot be divided so, or the folders of several students hold something else.
    """
    if config.students is None:
        return (config,)
    runs = tuple(_run(config, number, only) for number, only in enumerate(_selections(config)))
    check_outputs(config, runs)
    return runs


def each_student(config: Config, train: Train, *, resume: bool) -> None:
    """Divides the conditions, trains one student after the other, and makes the export's folder one of all of them.

    Args:
        config: with `students`.
        train: carries a run out.
        resume: whether runs that were begun go on.

    Raises:
        UserError: as `runs_of`, or by a run.
    """
    on_first(lambda: check_writable(config.out, "out"))
    runs_of(config)
    if not _by_class(config):
        _keep(broadcast(on_first(lambda: _parts(config, resume=resume))), config.out / PARTS)
    runs = runs_of(config)
    for number, run in enumerate(runs):
        if is_first():
            say(f"student {number} of {len(runs)}, {_told(run)}: {run.out}")
        train(run, resume=resume and (run.out / "checkpoints").is_dir())
    on_first(lambda: _put_together(config, runs))


def _by_class(config: Config) -> bool:
    return config.data.num_classes is not None and config.data.prompts is None


def _selections(config: Config) -> Sequence[Selection | None]:
    """What each student is trained on; None for prompts that are not divided yet."""
    if _by_class(config):
        return [Selection(classes=labels) for labels in _classes(config)]
    if config.data.prompts is None:
        raise UserError("students divide classes or prompts, and the data has neither: leave students out")
    if not isinstance(config.students, int):
        raise UserError("students lists classes, but the data has prompts: give the number of students")
    file = config.out / PARTS
    return [Selection(owned=Owned(file, number)) if file.is_file() else None for number in range(config.students)]


def _classes(config: Config) -> Sequence[tuple[int, ...]]:
    """The classes of each student: as they are listed, or so many in their order for each."""
    divided, count = config.students, config.data.num_classes
    assert divided is not None
    assert count is not None
    if isinstance(divided, int):
        if divided > count:
            raise UserError(f"students is {divided}, but there are {count} classes: give at most one for each")
        return [tuple(part.tolist()) for part in np.array_split(np.arange(count), divided)]
    if wrong := {label for labels in divided for label in labels}.symmetric_difference(range(count)):
        label = min(wrong)
        fault = "is in no list" if label < count else f"is none of the data's {count}"
        raise UserError(f"students: class {label} {fault}: divide all classes of the data, and no others")
    return divided


def _run(config: Config, number: int, only: Selection | None) -> Config:
    export = config.export.model_copy(update={"path": config.exported / str(number)})
    own = {"students": None, "only": only, "out": config.out / str(number), "export": export}
    return config.model_copy(update=own)


def _told(run: Config) -> str:
    assert run.only is not None
    if run.only.classes is not None:
        return f"classes {', '.join(map(str, run.only.classes))}"
    prompts = run.prompts or ()
    return f"{len(prompts):,} items such as {'; '.join(f'{text!r:.60}' for text in prompts[:SHOWN])}"


def _keep(parts: Mapping[str, Tensor] | None, file: Path) -> None:
    """Writes down what a run divides, for its own runs and for others; on each node that has a disk of its own."""
    if parts is not None and not file.is_file():
        with atomic_file(file) as place:
            save_file(dict(parts), place)


def _parts(config: Config, *, resume: bool) -> dict[str, Tensor]:
    """How the prompts are divided, `centres` [K, d] and `owners` [items] of them: as before, where a run goes on.

    Raises:
        UserError: there are students already, or another number of them.
    """
    file = config.out / PARTS
    if not file.is_file():
        return _divided(config)
    if not resume:
        refuse_folder(config.out, "students", "go on with them by --resume, or ")
    parts = load_file(file)
    if (count := len(parts["centres"])) != config.students:
        raise UserError(
            f"students is {config.students}, but in {config.out} prompts are divided among {count}: set that, or give "
            "another out=..."
        )
    return parts


def _divided(config: Config) -> dict[str, Tensor]:
    """The means of as many clusters of the prompts' embeddings, and the number of the nearest one for each item.

    Raises:
        UserError: there are fewer prompts, or nothing that embeds them.
    """
    from sklearn.cluster import KMeans

    prompts, count = config.data.prompts, config.students
    assert prompts is not None
    assert isinstance(count, int)
    kinds = list(dict.fromkeys(prompts))
    if len(kinds) < count:
        raise UserError(f"students is {count}, but there are {len(kinds)} different prompts: give fewer students")
    say(f"dividing {len(kinds):,} prompts among {count} students by their text embeddings")
    on_gpu = config.device != "cpu" and torch.cuda.is_available()
    points = text_embeddings(load_pipeline(config, torch.device("cuda" if on_gpu else "cpu")), kinds)
    means = KMeans(count, n_init=STARTS, random_state=seed_of(config.seed, "students") % 2**32)
    found = means.fit(points[:: -(-len(points) // MOST_POINTS)].numpy())
    centres = torch.from_numpy(found.cluster_centers_).float()
    owner = dict(zip(kinds, nearest(points, centres), strict=True))
    return {"centres": centres, "owners": torch.tensor([owner[prompt] for prompt in prompts])}


def _put_together(config: Config, runs: Sequence[Config]) -> None:
    """Writes beside the students which of them is for what; from then on the folder is sampled as one."""
    names = tuple(run.exported.name for run in runs)
    if _by_class(config):
        students = Students(names, classes=tuple(_classes(config)))
    else:
        students = Students(names, centres=load_file(config.out / PARTS)["centres"])
    students.write(config.exported)
    atomic_text(config.exported / "README.md", several_card(students, runs[0].exported / "README.md"))
    say(f"{config.exported} holds {len(runs)} students, which are sampled as one: fastgen sample {config.exported}")
