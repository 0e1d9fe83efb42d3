"""A folder from elsewhere: what a library would open of it, looked at before the library is called."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import dynamic_module_utils

from ...errors import UserError
from ...limits import Cap, read_json

ADAPTER = "adapter_config.json"


def check_pipeline(folder: Path) -> None:
    """Raises UserError for a pipeline's folder of which something else than safetensors and JSON would be opened."""
    _check_lengths(folder)
    for part in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        check_part(part)


def check_part(folder: Path) -> None:
    """Raises UserError for the folder of a network or tokenizer that would have a library open anything else."""
    _check_lengths(folder)
    if (folder / ADAPTER).exists():
        raise UserError(
            f"{folder} holds {ADAPTER}, for which a library would load another model and put this one's weights on it: "
            "merge the adapter into the model, or name it as a LoRA"
        )
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        content = read_json(index)
        names = content.get("weight_map") if isinstance(content, dict) else None
        if not isinstance(names, dict):
            raise UserError(f"{index} has no weight_map: copy or download it again")
        for name in names.values():
            if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
                raise UserError(
                    f"{index} names {name!r:.80}, which is no safetensors file beside it, and no other weights are "
                    "opened: convert them to safetensors, or download the folder again"
                )


@contextmanager
def unasked() -> Iterator[None]:
    """Within, Transformers refuses the code of a folder where it would ask whether to run it."""
    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0
    try:
        yield
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = before


def _check_lengths(folder: Path) -> None:
    for file in sorted(folder.glob("*.json")):
        if file.is_file():
            Cap.JSON.check(file.stat().st_size, str(file))
