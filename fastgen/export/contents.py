"""Whether the files of an export are those that were written, and hold a student: finite, and changed by training."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from ..errors import VerificationError, say
from ..manifest import MANIFEST, verify_manifest
from ..models.pipelines.notes import Notes

_UPS = ("lora_B.weight", "lora_up.weight", "lora.up.weight")
_REMEDY = "copy the export again from where it was made, or export the student again"


def check_files(folder: Path, notes: Sequence[Notes]) -> None:
    """Check every file of an export by its hash, and every weight by its values.

    Args:
        folder: of the export, or of one of its step counts.
        notes: of all that is exported in it.

    Raises:
        ManifestError: a file is missing, or not what was written.
        VerificationError: a weight is not finite, a LoRA changes nothing, or training changed no weight.
    """
    place = next((place for place in (folder, folder.parent) if (place / MANIFEST).is_file()), None)
    if place is None:
        say(f"{folder} has no {MANIFEST}, as exports of version 0.1: its files are not held against their hashes")
    else:
        verify_manifest(place, remedy=_REMEDY)
    own = {
        file.stat().st_ino: file for file in sorted(folder.rglob("*.safetensors"), reverse=True)
    }  # hard links count once
    for file in own.values():
        _check_weights(file)
    if any(one.unchanged for one in notes):
        raise VerificationError(
            f"{folder} is what it began as, of the teacher {notes[0].teacher or 'that its notes do not name'}: "
            "training changed no weight of it. Train longer, or with a larger learning rate"
        )


def _check_weights(file: Path) -> None:
    silent: list[bool] = []
    with safe_open(file, framework="pt") as content:
        for name in content.keys():  # noqa: SIM118
            tensor = content.get_tensor(name)
            if not tensor.isfinite().all():
                where = (
                    "" if tensor.ndim < 2 else f", row {int((~tensor.isfinite()).flatten(1).any(dim=1).nonzero()[0])}"
                )
                raise VerificationError(
                    f"{file} is not finite: {name}{where} has NaN or infinite values. Do not publish it; go on from an "
                    "earlier checkpoint, with a smaller learning rate or in another precision"
                )
            if name.endswith(_UPS):
                silent.append(not tensor.any())
    if silent and all(silent):
        raise VerificationError(
            f"{file} changes nothing: each of its {len(silent)} updates is zero. Train longer, or with a larger "
            "learning rate"
        )
