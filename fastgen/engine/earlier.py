"""An earlier student that a run starts from, as its files: an exported folder, a checkpoint or a LoRA."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..models.pipelines.folders import INDEX, OF_RUN, is_run, is_student
from ..models.pipelines.fuse import lora_file
from ..models.pipelines.loading import check_weights, variant_of, weight_files
from ..models.pipelines.opening import Opened
from ..models.pipelines.source import LoRAFile
from .checkpoint import STATE


@dataclass(frozen=True)
class Earlier:
    """Where an earlier student's weights lie.

    Args:
        kind: what its files are.
        folder: the checkpoint's, the pipeline's, or the one that the LoRA lies in.
        files: of its weights; of a LoRA one for each denoiser.
    """

    kind: Literal["checkpoint", "pipeline", "LoRA"]
    folder: Path
    files: tuple[Path, ...]


def earlier_of(path: str) -> Earlier:
    """What `init` names; of a run its newest checkpoint.

    Raises:
        UserError: nothing that a student could be read from.
    """
    place = Path(path)
    if not place.exists():
        raise UserError(f"init is {path}, which does not exist: correct the path, or remove it")
    if (place / "checkpoints").is_dir():
        steps = sorted(state.parent for state in place.glob(f"checkpoints/[0-9]*/{STATE}"))
        if not steps:
            raise UserError(f"init is {path}, a run without a checkpoint: give its exported student, or another run")
        place = steps[-1]
    elif is_run(place):
        raise UserError(f"init is {path}, the folder of a run without checkpoints: give its student, {place / OF_RUN}")
    if (place / STATE).is_file():
        return Earlier("checkpoint", place, tuple(sorted(place.glob("*.safetensors"))))
    if place.is_dir() and (several := Opened(path).each):
        raise UserError(f"init is {path}, which holds {len(several)} students: give one of them, as {several[0].path}")
    whole = place.is_dir() and is_student(place) and Opened(str(place)).place(None)
    if whole and (whole / INDEX).is_file():
        files = [file for part in weight_files(whole, variant_of(whole)).values() for file in part]
        check_weights(*files)
        return Earlier("pipeline", whole, tuple(files))
    try:
        first = lora_file(LoRAFile(path=path))
    except UserError as error:
        raise UserError(
            f"init is {path}, which is no exported student, no run or checkpoint, and no LoRA ({error}): give one of "
            "them"
        ) from error
    second = first.with_name(first.name.replace(".", "_2.", 1))
    return Earlier("LoRA", first.parent, (first, second) if second.is_file() else (first,))
