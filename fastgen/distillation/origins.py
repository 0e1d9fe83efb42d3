"""Whose weights the roles of a stage start from, refused where there are none or where they would not do."""

from ..config.schema import Config, StageConfig
from ..errors import UserError
from ..objectives import denoisers_of

SCALARS = {"s": "where its steps lead", "w": "its guidance", "heads": "an interval of time"}
"""What a generator may be told beside its time, in words."""


def check_origins(config: Config, number: int) -> None:
    """Refuses what a stage starts from, by its number.

    Raises:
        UserError: naming the stage, the role and where it may start from.
    """
    stage, earlier = config.stages[number], config.stages[:number]
    roles = denoisers_of(stage.objective)
    for role in stage.carry:
        if role not in roles:
            raise UserError(f"stage {stage.name!r} carries {role!r}, but its roles are {', '.join(sorted(roles))}")
    for role in _of_few_steps(stage):
        if stage.carry.get(role, "teacher") == "teacher":
            raise UserError(
                f"stage {stage.name!r} goes on from a student of few steps, which the teacher is not: train one in a "
                f"stage before, or give it as init, and set carry={{{role}: generator}}"
            )
    for role, origin in stage.carry.items():
        if role == "target":
            raise UserError(f"stage {stage.name!r} carries the target, which always starts as its generator: remove it")
        if origin == "teacher":
            continue
        _check_left(stage, role, origin, earlier[-1] if earlier else None, config)
        if config.sharing == "scores" and (role == "generator") == (origin == "fake_score"):
            raise UserError(
                f"stage {stage.name!r} carries the {role} from {_words(origin)}, of which under sharing=scores one is "
                f"a whole network and one a LoRA on the teacher: {_instead(stage, role, 'set sharing=full')}"
            )
    for role in roles if earlier else ():
        origin = stage.carry.get(role, "generator" if role == "generator" else "teacher")
        if origin != "teacher":
            before = next((one for one in earlier if one.name == origin), earlier[-1])
            _check_told(stage, role, origin, before)
            _check_null(stage, role, before)


def _of_few_steps(stage: StageConfig) -> list[str]:
    """The roles that must not start from the teacher, which takes many."""
    needs = stage.objective.needs
    return [role for role, few in (("real_score", needs.succeeds), ("coach", needs.coach)) if few]


def _check_left(stage: StageConfig, role: str, origin: str, before: StageConfig | None, config: Config) -> None:
    """Refuses what the stage before, None for the first, does not leave."""
    left = {
        "generator": before is not None or config.init is not None,
        "ema": before is not None and before.train.ema is not None,
        "fake_score": before is not None and "fake_score" in denoisers_of(before.objective),
    }
    if not left.get(origin, True):
        raise UserError(
            f"stage {stage.name!r} carries {role} from {origin!r}, which the stage before does not leave: it must "
            "exist, keep an average (train.ema) for 'ema', and have one for 'fake_score'; init leaves a 'generator'"
        )


def _check_told(stage: StageConfig, role: str, origin: str, before: StageConfig) -> None:
    """Refuses a role that goes on from one that was told what this role is not."""
    known = _told(before, "fake_score" if origin == "fake_score" else "generator")
    fused = origin == before.name  # what it was told is in the weights that an earlier stage leaves
    lost = known if fused else [name for name in known if name not in _told(stage, role)]
    if lost:
        what = " and ".join(SCALARS.get(name, name) for name in lost)
        why, told = "and is not told it itself", "are told the same"
        if fused:
            why, told = "and it is baked into what a stage leaves under its name", "are told nothing"
        raise UserError(
            f"the {role} of stage {stage.name!r} goes on from {_words(origin)} of stage {before.name!r}, which is "
            f"told {what}, {why}: {_instead(stage, role, f'choose objectives that {told}')}"
        )


def _instead(stage: StageConfig, role: str, change: str) -> str:
    """The remedies for a role that cannot start where it is said to: the teacher, where that will do, or a change."""
    if role in _of_few_steps(stage):
        return change
    return f"start it from the teacher (carry: {{{role}: teacher}}), or {change}"


def _check_null(stage: StageConfig, role: str, before: StageConfig) -> None:
    """Refuses to guide by a real score whose unconditional mode an earlier stage left behind."""
    if role == "real_score" and stage.objective.needs.null and not before.objective.needs.null:
        raise UserError(
            f"stage {stage.name!r} guides by a real_score that stage {before.name!r} trained without an unconditional "
            f"mode: set a dropout of conditions there, such as objective.dropout=0.1 of degradation, or no guidance in "
            f"{stage.name!r}"
        )


def _words(origin: str) -> str:
    return "the fake score" if origin == "fake_score" else "the generator"


def _told(stage: StageConfig, role: str) -> tuple[str, ...]:
    """What a role is told beside the time."""
    needs = stage.objective.needs
    return (*needs.scalars_of(role), *["heads"] * (role == "generator" and needs.heads > 0))
