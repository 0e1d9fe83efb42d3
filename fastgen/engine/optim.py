"""One optimizer per role, and the course of its learning rate."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.autograd.graph import increment_version

from ..config.schema import OptimConfig
from ..models.sharding import gradient_norm

FUSED = ("cuda", "cpu")


class RoleOptimizer:
    """AdamW over a role's parameters with clipping, warm-up and schedule.

    Args:
        parameters: parameters of the role.
        settings: settings of its optimizer.
        total: updates over the whole stage, where the schedule ends.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], settings: OptimConfig, *, total: int) -> None:
        self.parameters = list(parameters)
        self.settings = settings
        self.total = total
        self.updates = 0
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=settings.betas,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
            fused=self.fused or None,
        )

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        settings = self.settings
        if self.updates < settings.warmup:
            return settings.lr * (self.updates + 1) / settings.warmup
        past = min(1.0, (self.updates - settings.warmup) / max(1, self.total - settings.warmup))
        remaining = {"constant": 1.0, "linear": 1 - past, "cosine": 0.5 * (1 + math.cos(math.pi * past))}
        return settings.lr * remaining[settings.schedule]

    def clip(self) -> torch.Tensor:
        """The norm of the gradient before it is clipped; a tensor, so that nothing waits for the device yet."""
        largest = self.settings.clip or math.inf
        norm = gradient_norm(self.parameters)
        nn.utils.clip_grads_with_norm_(self.parameters, largest, norm)
        return norm

    @property
    def fused(self) -> bool:
        """Whether a step can be blocked from the device."""
        return all(p.is_floating_point() and p.device.type in FUSED for p in self.parameters)

    def step(self, *, blocked: torch.Tensor | None = None) -> None:
        """One update.

        Args:
            blocked: on the device, of a fused optimizer; where it is 1, neither parameters nor moments change.
        """
        self.optimizer.found_inf = blocked  # type: ignore[attr-defined]
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        for parameter in self.parameters:
            increment_version(parameter)  # fused kernels write past PyTorch's count of writes, which copies go by
        self.updates += 1

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
