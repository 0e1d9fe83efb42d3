"""Roles on one network and on networks of their own: small ones of the families whose blocks differ."""

import copy
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from peft import inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor, nn

from fastgen.models.adapted import AdaptedDenoiser
from fastgen.models.adapters import Adaptation, SharedNetwork, alias
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.models.discriminator import Discriminator, default_layers
from fastgen.models.merging import lora_layers
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.process import even_grid, from_scheduler

ROWS, WIDTH, TOKENS = 2, 16, 3
TRAINED = ("generator", "fake_score")
ROLES = (*TRAINED, "real_score")
TRANSFORMER, UNET = CallForm(sample="hidden_states", channels=4), CallForm(channels=4)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Family:
    """A network and how it is called."""

    kind: str
    settings: dict[str, Any]
    told: dict[str, Any]
    shared: dict[str, Any]
    shape: tuple[int, ...] = (4, 8, 8)
    form: CallForm = TRANSFORMER

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        net = getattr(diffusers, self.kind)(**self.settings).eval()
        for p in net.parameters():  # some families start with a last layer of zeros
            p.data += 0.02 * torch.randn_like(p)
        return net


def unet(**settings: Any) -> dict[str, Any]:
    return {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, **settings}


TEXT = {"encoder_hidden_states": noise(ROWS, TOKENS, WIDTH)}
CONDITIONAL = unet(
    cross_attention_dim=WIDTH,
    attention_head_dim=2,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
)
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}
SQUARE = {"sample_size": 8, "in_channels": 4, "patch_size": 2}
FAMILIES = {
    "SD": Family("UNet2DConditionModel", CONDITIONAL, TEXT, {}, form=UNET),
    "SDXL": Family(
        "UNet2DConditionModel",
        {
            **CONDITIONAL,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
        },
        {**TEXT, "added_cond_kwargs": {"text_embeds": noise(ROWS, WIDTH), "time_ids": 8 * torch.ones(ROWS, 6)}},
        {},
        form=UNET,
    ),
    "Flux": Family(
        "FluxTransformer2DModel",
        {
            **{"patch_size": 1, "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2},
            **{"attention_head_dim": 16, "axes_dims_rope": (4, 4, 8), "joint_attention_dim": WIDTH},
            **{"pooled_projection_dim": WIDTH, "guidance_embeds": True},
        },
        {**TEXT, "pooled_projections": noise(ROWS, WIDTH), "guidance": torch.full((ROWS,), 3.5)},
        {"img_ids": noise(4, 3).abs().round(), "txt_ids": torch.zeros(TOKENS, 3)},
        shape=(4, 16),
        form=CallForm(sample="hidden_states", slope=1e-3),
    ),
    "SD3": Family(
        "SD3Transformer2DModel",
        {
            **{**SQUARE, **HEADS, "num_layers": 2, "out_channels": 4, "pos_embed_max_size": 8},
            **{"joint_attention_dim": WIDTH, "caption_projection_dim": 16, "pooled_projection_dim": WIDTH},
        },
        {**TEXT, "pooled_projections": noise(ROWS, WIDTH)},
        {},
    ),
    "Sana": Family(
        "SanaTransformer2DModel",
        {
            **{**SQUARE, **HEADS, "patch_size": 1, "out_channels": 4, "num_layers": 2, "caption_channels": WIDTH},
            **{"num_cross_attention_heads": 2, "cross_attention_head_dim": 8, "cross_attention_dim": 16},
        },
        TEXT,
        {},
    ),
    "UNet2D": Family(
        "UNet2DModel",
        unet(
            in_channels=4,
            out_channels=4,
            attention_head_dim=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"),
            up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        ),
        {},
        {},
        form=UNET,
    ),
    "DiT": Family(
        "DiTTransformer2DModel",
        {**SQUARE, **HEADS, "out_channels": 8, "num_layers": 2, "num_embeds_ada_norm": 10, "norm_num_groups": 4},
        {"class_labels": torch.tensor([1, 2])},
        {},
    ),
    "PixArt": Family(
        "PixArtTransformer2DModel",
        {
            **{**SQUARE, **HEADS, "out_channels": 8, "num_layers": 2, "caption_channels": WIDTH},
            **{"cross_attention_dim": 16, "norm_num_groups": 4, "use_additional_conditions": False},
        },
        {**TEXT, "encoder_attention_mask": torch.ones(ROWS, TOKENS)},
        {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
}
FLOW = from_scheduler(FlowMatchEulerDiscreteScheduler())


def shared(
    family: Family, base: nn.Module, checkpointing: bool, compute: torch.dtype | None = None
) -> tuple[Roles, SharedNetwork]:
    """All roles on one network; the adapters have left their zero."""
    torch.manual_seed(1)
    network = SharedNetwork(alias(base), TRAINED, Adaptation(rank=2, alpha=3.0), compute=compute)
    with torch.no_grad():
        for role in TRAINED:
            for p in network.adapters[role].parameters():
                p += 0.2 * torch.randn_like(p)
    if checkpointing:
        network.checkpoint_blocks()
    denoiser = NetworkDenoiser(network.net, FLOW, family.form)
    members: dict[str, nn.Module] = {role: AdaptedDenoiser(denoiser, network, role) for role in ROLES}
    return with_discriminator(members, family, base), network


class Alone(NetworkDenoiser):
    """A network whose adapter is trained."""

    def requires_grad_(self, requires_grad: bool = True) -> "Alone":
        for name, p in self.named_parameters():
            if "lora_" in name:
                p.requires_grad_(requires_grad)
        return self


def apart(family: Family, base: nn.Module, together: Roles, checkpointing: bool) -> Roles:
    """A network for each role with one adapter at most, switched by nothing and called as peft does."""
    members: dict[str, nn.Module] = {}
    for role in ROLES:
        net = copy.deepcopy(base).requires_grad_(False)
        if role in TRAINED:
            state, config = lora_layers(together[role].adapter.state_dict(), alpha=3.0)
            inject_adapter_in_model(config, net)
            set_peft_model_state_dict(net, state)
        if checkpointing:
            net.enable_gradient_checkpointing()
        members[role] = Alone(net, FLOW, family.form)
    return with_discriminator(members, family, base)


def with_discriminator(members: dict[str, nn.Module], family: Family, base: nn.Module) -> Roles:
    torch.manual_seed(2)
    example = (noise(ROWS, *family.shape), torch.full((ROWS,), 0.5, dtype=torch.float64), conditioning(family))
    layers = default_layers(base, members["fake_score"], example)
    members["discriminator"] = Discriminator(members["fake_score"], layers, example)
    for p in members["discriminator"].parameters():
        p.data += 0.1 * torch.randn_like(p)
    return Roles(members, Plan([even_grid(2)]))


def conditioning(family: Family) -> Conditioning:
    return Conditioning(ROWS, family.told, family.shared)
