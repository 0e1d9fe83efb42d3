"""What networks and samples that lie on several processes cannot be combined with."""

from ..config.discriminator import reader_of
from ..config.schema import Config, StageConfig
from ..engine.dtypes import QUANTISED, base_of
from ..errors import UserError
from ..objectives import denoisers_of, roles_of


def check_processes(stage: StageConfig, config: Config) -> None:
    """Refuses, before anything is loaded, what slices of networks or parts of samples cannot do.

    Raises:
        UserError: naming the settings, the rule and the remedy.
    """
    _check_sharding(stage, config)
    _check_sequences(stage, config)


def _check_sharding(stage: StageConfig, config: Config) -> None:
    """Refuses what networks in slices cannot do."""
    needs, train = stage.objective.needs, stage.train
    hindrances = {
        "train.compile, which would compile blocks that are not there": (train.compile, "train.compile=false"),
        "train.precision fp16, whose loss scaler looks at slices alone": (
            train.precision == "fp16",
            "train.precision=bf16",
        ),
        f"train.masters {train.masters}, halves of numbers that no slice holds": (
            train.masters != "fp32",
            "train.masters=fp32",
        ),
        "an optimizer besides adamw, which looks at whole tensors": (
            any(train.optim_of(role).name != "adamw" for role in roles_of(stage.objective)),
            "optim.name=adamw",
        ),
        "frozen parameters, which slices do not know by name": (
            any(train.optim_of(role).frozen for role in roles_of(stage.objective)),
            "the roles' frozen=[]",
        ),
        "a discriminator with a backbone of its own, which slices do not reach": (
            "discriminator" in roles_of(stage.objective)
            and not needs.pixels
            and reader_of(stage.discriminator, denoisers_of(stage.objective)) == "own",
            "discriminator.backbone to a role that the objective has, or gan.pixels=true",
        ),
        "train.ema_device cpu, where slices do not meet": (train.ema_device == "cpu", "train.ema_device=auto"),
        "gan.r1, a second derivative": (needs.second_derivative, "gan.approximate_r1 in its place"),
        "gan.feature_r1, a second derivative": (needs.head_derivative, "gan.approximate_r1 in its place"),
        "calls of networks that depend on the samples drawn, where all processes have to make the same": (
            needs.uneven,
            "another objective",
        ),
        "exact derivatives by the time": (needs.fine_times, "objective.derivative_step=0.03"),
        f"lora.base {config.lora.base}, whose weights cannot be sliced": (
            config.sharing != "full" and base_of(config) in QUANTISED,
            "lora.base=bf16",
        ),
    }
    for what, (present, remedy) in hindrances.items():
        if train.sharding != "none" and present:
            raise UserError(
                f"stage {stage.name!r} has train.sharding {train.sharding} and {what}: set {remedy}, or "
                "train.sharding=none"
            )


def _check_sequences(stage: StageConfig, config: Config) -> None:
    """Refuses what reads or holds the values of a network's layers where its tokens lie on several processes.

    Raises:
        UserError: naming the settings, the rule and the remedy.
    """
    train, needs = stage.train, stage.objective.needs
    if train.sequence_parallel == 1:
        return
    hindrances = {
        "a discriminator, which reads whole layers": "discriminator" in roles_of(stage.objective),
        "derivatives that attention on several processes does not have": needs.second_derivative or needs.fine_times,
        "train.compile": train.compile,
        f"train.sharding={train.sharding}": train.sharding != "none",
        f"memory={config.memory}": config.memory != "ample",
    }
    for hindrance, is_there in hindrances.items():
        if is_there:
            raise UserError(
                f"stage {stage.name!r} has train.sequence_parallel={train.sequence_parallel}, whose processes have "
                f"parts of every sample's tokens, and {hindrance}: set train.sequence_parallel=1, or leave that out"
            )
