"""One optimizer per role, and the course of its learning rate."""

import math

import torch
from torch import Tensor, nn

from ..config.optimizer import OptimConfig
from ..config.schema import StageConfig
from ..models.casting import HALF
from ..models.owned import Owned
from ..models.roles import Roles
from ..models.sharding import gradient_norm
from ..objectives import roles_of
from .stepper import Stepper

FUSED = ("cuda", "cpu", "meta")


class RoleOptimizer:
    """The updates of what a role trains, with clipping, warm-up and schedule.

    Args:
        parts: what the role trains.
        settings: settings of its optimizer.
        total: updates over the whole stage, where the schedule ends.
        seed: position in the run, for what is rounded by chance; the same on every process.
    """

    def __init__(self, parts: Owned, settings: OptimConfig, *, total: int, seed: tuple[int | str, ...] = ()) -> None:
        self.parameters = list(parts.tensors)
        self.settings = settings
        self.total = total
        self.updates = 0
        self._seed = seed
        known = settings.model_dump(include={"lr", "betas", "eps", "weight_decay", "momentum"})
        self.optimizer = Stepper(parts, settings.name, {**known, "fused": self.fused})

    @property
    def lr(self) -> float:
        """Learning rate of the next update."""
        settings = self.settings
        if self.updates < settings.warmup:
            return settings.lr * (self.updates + 1) / settings.warmup
        past = min(1.0, (self.updates - settings.warmup) / max(1, self.total - settings.warmup))
        remaining = {"constant": 1.0, "linear": 1 - past, "cosine": 0.5 * (1 + math.cos(math.pi * past))}
        return settings.lr * remaining[settings.schedule]

    @property
    def gradients(self) -> int:
        """Bytes of the gradients of all parameters."""
        return sum(p.numel() * (p.grad_dtype or p.dtype).itemsize for p in self.parameters)

    def clip(self) -> Tensor:
        """The norm of the gradient before it is clipped; a tensor, so that nothing waits for the device yet.

        Gradients in half precision stay as they are, and are clipped when the step reads them.
        """
        largest = self.settings.clip or math.inf
        found = [p for p in self.parameters if p.grad is not None]
        wide = [p for p in found if p.grad is not None and p.grad.dtype not in HALF]
        if len(wide) == len(found):
            norm = gradient_norm(self.parameters)
        else:
            norms = torch._foreach_norm([p.grad for p in found if p.grad is not None], 2, torch.float32)
            norm = torch.linalg.vector_norm(torch.stack(norms))
            self.optimizer.factor = (largest / (norm + 1e-6)).clamp(max=1)
        nn.utils.clip_grads_with_norm_(wide, largest, norm)
        return norm

    @property
    def fused(self) -> bool:
        """Whether a step can be blocked from the device."""
        return all(p.is_floating_point() and p.device.type in FUSED for p in self.parameters)

    def step(self, *, blocked: Tensor | None = None) -> None:
        """One update.

        Args:
            blocked: on the device, of a fused optimizer; where it is 1, neither parameters nor moments change.
        """
        self.optimizer.found_inf = blocked
        self.optimizer.position = (*self._seed, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr
        self.optimizer.step()
        self.updates += 1

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


def optimizers_of(stage: StageConfig, roles: Roles, *, cycles: int, seed: tuple[int, int]) -> dict[str, RoleOptimizer]:
    """An optimizer for each role that a stage trains and that has parameters.

    Args:
        cycles: cycles of the whole stage.
        seed: that of the run, and the place of the stage in it.
    """
    turns = stage.objective.cycle
    return {
        role: RoleOptimizer(
            roles.trained(role),
            stage.train.optim_of(role),
            total=cycles * sum(role in turn for turn in turns),
            seed=(*seed, role),
        )
        for role in roles_of(stage.objective)
        if roles.parameters(role)
    }
