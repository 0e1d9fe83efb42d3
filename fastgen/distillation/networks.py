"""A student whose network has an architecture of its own: what it cannot be trained by is refused."""

from pathlib import Path

from ..config.schema import Config, StageConfig
from ..errors import UserError
from .plan import denoiser, started


def check_network(config: Config) -> None:
    """Refuses settings for which the generator's network would have to be of the teacher's architecture.

    Raises:
        UserError: naming the setting and the remedy.
    """
    if config.student.network is None:
        return
    if config.sharing == "lora":
        raise UserError(
            "under sharing=lora the generator is an adapter on the teacher's network, and student.network is another "
            "network: set sharing=full or sharing=scores, or leave student.network out"
        )
    if config.teacher.new is not None:
        raise UserError(
            "student.network differs from the teacher's network, and that of teacher.new is yet to be trained: "
            "describe the network in teacher.new, or give a teacher.path"
        )
    for stage in config.stages:
        _check_stage(stage)


def check_built(config: Config, recipes: Path) -> None:
    """Raises UserError where the network cannot be made, as far as the teacher's configs are here."""
    net = denoiser(config, recipes)
    if net is not None:
        started(config, net)


def _check_stage(stage: StageConfig) -> None:
    """Refuses a role of the one architecture that would start from one of the other, or take over a share of it."""
    if stage.objective.needs.follows:
        raise UserError(
            f"stage {stage.name!r} has stabilisers.follow, but the generator has a network of its own "
            "(student.network), of which a fake score like the teacher can take over no share: leave one of them out"
        )
    for role, origin in stage.carry.items():
        crossed = role == "generator" if origin == "fake_score" else role == "fake_score" and origin != "teacher"
        if crossed:
            raise UserError(
                f"stage {stage.name!r} carries the {role} from {origin!r}, but the generator has a network of its own "
                "(student.network), and a fake score has the teacher's: leave one of them out"
            )
