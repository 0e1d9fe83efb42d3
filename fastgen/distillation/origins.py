"""Whose weights the roles of a stage start from, refused where there are none or where they would not do."""

from ..config.schema import Config, StageConfig
from ..errors import UserError
from ..objectives import denoisers_of

SCALARS = {"s": "where its steps lead", "w": "its guidance", "heads": "an interval of time"}
"""What a generator may be told beside its time, in words."""


def check_origins(before: StageConfig | None, stage: StageConfig, config: Config) -> None:
    """Refuses what a stage carries from the one before, None for the first.

    Raises:
        UserError: naming the stage, the role and where it may start from.
    """
    roles = denoisers_of(stage.objective)
    for role, origin in stage.carry.items():
        if role not in roles:
            raise UserError(f"stage {stage.name!r} carries {role!r}, but its roles are {', '.join(sorted(roles))}")
        if origin == "teacher":
            continue
        if role == "target":
            raise UserError(f"stage {stage.name!r} carries the target, which always starts as its generator: remove it")
        if config.init is None if before is None else origin == "ema" and before.train.ema is None:
            raise UserError(
                f"stage {stage.name!r} carries {role} from {origin!r}, which the stage before does not leave: it must "
                "exist, and keep an average (train.ema) for 'ema'"
            )
        if config.sharing == "scores" and role != "generator":
            raise UserError(
                f"stage {stage.name!r} carries the {role} from a whole generator, but under sharing=scores it is a "
                "LoRA on the teacher: set sharing=full, or start it from the teacher"
            )
    if before is not None:
        _check_told(before, stage)


def _check_told(before: StageConfig, stage: StageConfig) -> None:
    """Refuses a role that goes on from a generator that was told what this role is not."""
    known = _told(before, "generator")
    for role in denoisers_of(stage.objective):
        origin = stage.carry.get(role, "generator" if role == "generator" else "teacher")
        lost = [name for name in known if name not in _told(stage, role)]
        if origin != "teacher" and lost:
            what = " and ".join(SCALARS.get(name, name) for name in lost)
            raise UserError(
                f"the {role} of stage {stage.name!r} goes on from the generator of stage {before.name!r}, which is "
                f"told {what}, and is not told it itself: start it from the teacher (carry: {{{role}: teacher}}), or "
                "choose objectives that are told the same"
            )


def _told(stage: StageConfig, role: str) -> tuple[str, ...]:
    """What a role is told beside the time."""
    needs = stage.objective.needs
    return (*needs.scalars_of(role), *["heads"] * (role == "generator" and needs.heads > 0))
