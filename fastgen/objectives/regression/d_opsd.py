"""On-policy self-distillation of a distilled model (D-OPSD, Jiang et al. 2026, arXiv:2605.05204, and an open trainer).

A model of few steps learns to say when asked plainly what it says in a richer context. Where both are asked the student
comes by itself, sampling as its exported pipeline does, so that it stays a model of few steps; noised images lie
elsewhere. The teacher is the student's own average (`ema` below 1) or the distilled model as it was (1).

The paper's context is the wanted image beside the prompt, read by the pipeline's multimodal encoder; stock pipelines
take prompts alone, and here it is words around them: a style, a trigger's meaning, a long quality prompt, trained away
into a LoRA, from prompts alone. Words have no bias that images have. Where the student stops does not depend on an
image that it is not shown: of several wanted images of one prompt its first step would learn their mean.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ...models.calls import look, through
from ...models.contract import Denoiser
from ...models.roles import Roles
from ...process import ROWS
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import check_decay, edges_of, follow, target_of
from ..parts.needs import Needs
from ..parts.ops import RowName
from ..parts.rollout import sampled


@dataclass(frozen=True)
class SelfDistillation:
    """D-OPSD of a context of words; `teacher.path` is the distilled pipeline.

    Args:
        context: what the teacher is asked in the place of each prompt, which stands at "{}".
        ema: decay of the teacher, the student's average; at 1 it is the distilled model itself.
        falloff: weight of each stop beside the one before.
        space: row in which errors are squared.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    context: str = "a detailed picture of high quality of {}"
    ema: float = 0.9999
    falloff: float = 0.5
    space: RowName = "x0"

    def __post_init__(self) -> None:
        if self.ema != 1:
            check_decay(self.ema)
        if self.context.count("{}") != 1 or self.context.strip() == "{}":
            raise ValueError(
                f"context is {self.context!r}: give words around one {{}}, the place of the prompt, such as "
                "'a watercolour of {}'"
            )
        if self.falloff <= 0:
            raise ValueError(f"falloff is {self.falloff:g}: a weight of 0 or below teaches nothing, need above 0")

    @property
    def needs(self) -> Needs:
        return Needs(context=self.context, real_score=self.ema == 1, target=0 < self.ema < 1)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        if self.ema < 1:
            follow(roles, batch, self.ema)
        grid, row = edges_of(roles, batch)[:-1], ROWS[self.space]
        depth = int(torch.randint(len(grid), (), generator=batch.shared_rng, device=batch.shared_rng.device))
        x_t, t = sampled(roles, batch, grid, depth=depth)
        aim = look(self._teacher(roles), x_t, t, batch.context).output(row)
        error = through(roles.generator, x_t, t, batch.cond).output(row) - aim
        weights = self.falloff ** torch.arange(len(grid), dtype=torch.float64)
        return {"context": float(weights[depth] / weights.mean()) * error.square().mean()}

    def _teacher(self, roles: Roles) -> Denoiser:
        return roles.real_score if self.ema == 1 else target_of(roles, self.ema)
