"""The checkpoint that a run goes on from, once it is known to be of this run: its settings and what it was made of."""

from collections.abc import Callable, Collection

from ..config.schema import Config
from ..config.yaml_file import fingerprint
from ..errors import CheckpointError
from .budgets import Begun, budgets, without_budgets
from .checkpoint import Snapshot, newest_of_the_first
from .materials import Material, Materials, check_materials
from .migration import migrated


def resumed(
    config: Config, made_of: Materials, *, allowed: Collection[Material], say: Callable[[str], None]
) -> Snapshot | None:
    """The newest valid checkpoint of a run, None where there is none yet.

    Args:
        made_of: what the run is made of now.
        allowed: what of it may be another than it was.
        say: tells the person who watches.

    Raises:
        CheckpointError: the checkpoints are damaged, or of a run with other settings or contents.
    """
    loaded = newest_of_the_first(config.out / "checkpoints", warn=say)
    if loaded is None:
        say(f"nothing to resume in {config.out}: starting from the beginning")
        return None
    snapshot = migrated(loaded.snapshot, loaded.path)
    saved, now = snapshot.state["fingerprint"], fingerprint(config)
    changed = _differences(without_budgets(saved), without_budgets(now))
    if changed:
        raise CheckpointError(
            f"the checkpoint {loaded.path} was written with other settings ({'; '.join(changed[:10])}): resume "
            f"with the config saved in {config.out / 'config.yaml'}, or start in another folder (out=...)"
        )
    begun, both = Begun(loaded.path, snapshot.state), zip(budgets(saved), budgets(now), strict=True)
    told = [begun.new_budget(i, config.stages[i], was) for i, (was, is_now) in enumerate(both) if was != is_now]
    check_materials(snapshot.state.get("made_of", {}), made_of, loaded.path, allowed=allowed)
    say("; ".join([f"resuming from {loaded.path}", *told]))
    return snapshot


def due_again(snapshot: Snapshot) -> bool:
    """Whether what was due after the last cycle is still to be done, its line in the log too."""
    return "boundary" in snapshot.state


def _differences(old: object, new: object, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for key in keys for d in _differences(old.get(key), new.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, pair in enumerate(zip(old, new, strict=True)) for d in _differences(*pair, f"{path}.{i}")]
    return [] if old == new else [f"{path} was {old}, is {new}"]
