"""The roles of a stage: who exists, and whose weights each starts from."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..config import Config, DiscriminatorSpec, Precision
from ..config import Stage as StageConfig
from ..errors import UserError
from ..models.denoiser import NetworkDenoiser
from ..models.discriminator import Discriminator, default_layers
from ..models.pipeline import Pipeline
from ..models.roles import DENOISERS, Roles
from ..objectives import roles_of
from .random import seed_of

Weights = Mapping[str, Mapping[str, Tensor]]
"""Origin ("generator", "ema") -> state dict of the stage before."""

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_roles(
    pipeline: Pipeline, stage: StageConfig, *, grids: list[Tensor], weights: Weights | None, seed: int
) -> Roles:
    """Full copies of the teacher's network for every denoiser that the objective names.

    The generator goes on from the stage before (its average if there is one), everyone else starts from the
    teacher, unless `carry` says otherwise. Without `weights` a checkpoint fills them in afterwards.

    Raises:
        UserError: `carry` names a stage before that does not exist.
    """
    trained = roles_of(stage.objective)
    names = [name for name in DENOISERS if name in trained or name in stage.objective.needs]
    origins = {name: _origin(name, stage, weights) for name in names}
    members: dict[str, nn.Module] = {
        name: _denoiser(pipeline, stage.train, (weights or {}).get(origin), frozen=name not in trained)
        for name, origin in origins.items()
    }
    torch.manual_seed(seed_of(seed, stage.name, "discriminator"))
    if "discriminator" in trained:
        members["discriminator"] = _discriminator(pipeline, members, stage.discriminator)
    borrowed = [name for name, origin in origins.items() if name not in trained and origin == "teacher"]
    return Roles(members, grids=grids, borrowed=borrowed)


def check_needs(config: Config, pipeline: Pipeline) -> None:
    """Refuses, before anything is trained, data or a teacher that lacks what an objective reads.

    Raises:
        UserError: naming the stage, what it needs and how to give it.
    """
    for stage in config.stages:
        needs = stage.objective.needs
        if "images" in needs and not config.data.has_images:
            raise UserError(
                f"stage {stage.name!r} needs real images and the data source has none: use data.source folder, parquet "
                "or digits, or switch its GAN term off (objective.gan=0)"
            )
        if "null" in needs and pipeline.kind != "prompt" and pipeline.null_label is None:
            raise UserError(
                f"stage {stage.name!r} uses guidance or label dropout, but the teacher has no null label: set "
                "teacher.null_label, or guidance to 1 and label_dropout to 0"
            )
    if pipeline.kind == "label" and config.data.num_classes not in (None, len(pipeline.classes)):
        raise UserError(
            f"the data has {config.data.num_classes} classes, the teacher {len(pipeline.classes)}: use the data that "
            "the teacher was trained on, or set teacher.num_classes if its folder does not say it right"
        )


def _origin(name: str, stage: StageConfig, weights: Weights | None) -> str:
    if weights is None:
        return stage.carry.get(name, "teacher")
    going_on = next((origin for origin in ("ema", "generator") if origin in weights), "teacher")
    origin = stage.carry.get(name, going_on if name == "generator" else "teacher")
    if origin != "teacher" and origin not in weights:
        raise UserError(
            f"stage {stage.name!r} carries {name} from {origin!r}, which the stage before does not leave: it must "
            "exist, and keep an average (train.ema) for 'ema'"
        )
    return origin


def _denoiser(
    pipeline: Pipeline, settings: Any, state: Mapping[str, Tensor] | None, *, frozen: bool
) -> NetworkDenoiser:
    precision: Precision = settings.precision
    denoiser = pipeline.denoiser(autocast=AUTOCAST[precision])
    if state is not None:
        denoiser.net.load_state_dict(state)
    if frozen and precision == "bf16":
        denoiser.net.to(torch.bfloat16)
    if settings.gradient_checkpointing and not frozen:
        denoiser.net.enable_gradient_checkpointing()  # type: ignore[operator]
    if settings.compile:
        denoiser.net.compile()
    return denoiser


def _discriminator(pipeline: Pipeline, members: Mapping[str, nn.Module], spec: DiscriminatorSpec) -> Discriminator:
    if spec.backbone not in members:
        raise UserError(f"discriminator.backbone is {spec.backbone}, a role that this objective does not have")
    device = next(members[spec.backbone].parameters()).device
    x = torch.zeros((2, *pipeline.shape), device=device)
    cond = pipeline.condition(2, labels=torch.tensor([0, 1]), prompts=["a", "b"]).to(device)
    t = torch.full((2,), 0.5, dtype=torch.float64, device=device)
    layers = spec.layers or default_layers(pipeline.network)
    known = [name for name, _ in pipeline.network.named_modules() if name]
    unknown = [layer for layer in layers if layer not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=3) or known[:3]
        raise UserError(f"discriminator.layers names {unknown[0]!r}, the network has e.g. {', '.join(close)}")
    return Discriminator(members[spec.backbone], layers, (x, t, cond)).to(device)  # type: ignore[arg-type]
