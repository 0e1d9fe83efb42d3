"""Checks of stages whose networks or samples are divided among several processes."""

from ..config.discriminator import reader_of
from ..config.schema import Config, StageConfig
from ..engine.dtypes import QUANTISED, base_of
from ..errors import UserError
from ..objectives import denoisers_of, roles_of


def check_processes(stage: StageConfig, config: Config) -> None:
    """Refuses, before anything is loaded, what does not work with sliced networks or divided samples.

    Raises:
        UserError: naming the settings, the rule and the remedy.
    """
    _check_sharding(stage, config)
    _check_sequences(stage, config)


def _check_sharding(stage: StageConfig, config: Config) -> None:
    """Refuses what does not work with networks in slices, see `models.sharding`.

    Raises:
        UserError: naming the settings, the rule and the remedy.
    """
    train = stage.train
    if train.sharding == "none":
        return
    for hindrance, (is_there, remedy) in _hindrances_to_sharding(stage, config).items():
        if is_there:
            raise UserError(
                f"stage {stage.name!r} has train.sharding {train.sharding} and {hindrance}: set {remedy}, or "
                "train.sharding=none"
            )


def _hindrances_to_sharding(stage: StageConfig, config: Config) -> dict[str, tuple[bool, str]]:
    """What cannot be combined with networks in slices, in words -> whether the stage has it, and the remedy."""
    needs, train, trained = stage.objective.needs, stage.train, roles_of(stage.objective)
    optimizers = [train.optim_of(role) for role in trained]
    reader = reader_of(stage.discriminator, denoisers_of(stage.objective))
    return {
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
            any(optimizer.name != "adamw" for optimizer in optimizers),
            "optim.name=adamw",
        ),
        "frozen parameters, which slices do not know by name": (
            any(optimizer.frozen for optimizer in optimizers),
            "the roles' frozen=[]",
        ),
        "a discriminator with a backbone of its own, which slices do not reach": (
            "discriminator" in trained and not needs.pixels and reader == "own",
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


def _check_sequences(stage: StageConfig, config: Config) -> None:
    """Refuses what reads or keeps outputs of layers where the tokens of a sample are divided among processes.

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
