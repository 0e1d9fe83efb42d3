"""Training on a distilled model: denoising of the user's images, held near to what the model said before.

Plain denoising makes of a few-step model a many-step one again: at each noise level the mean of the images that are
possible there is right for it, and a few-step model says more than a mean. A drift term on the same noised samples
(as in SimpleTuner's drift distillation) pulls back to the distilled model, which is the teacher of the run; under
`sharing: lora` it is the same network without the adapter. With d times its squared error the fixed point is

    x0 = (E[x0 | x_t] + d x0_distilled) / (1 + d)

at each noise level: some of the change for some of the steps, not all of both.
"""

from dataclasses import dataclass
from typing import ClassVar

from ...models.calls import look, through
from ...models.roles import Roles
from ...process import ROWS, AnyTimeLaw
from ..parts.base import ONE_TURN, Batch, Cycle, Terms
from ..parts.flow_map import drawn_step, edges_of, noised
from ..parts.needs import Needs
from ..parts.ops import RowName, denoising_loss


@dataclass(frozen=True)
class Finetune:
    """A distilled model learns images; `teacher.path` is the distilled pipeline.

    Args:
        drift: weight of the distance to the distilled model, beside 1 of the images; 0 is plain denoising, such as for
            an adapter that is left out again after the user's own was trained beside it.
        times: where both look; at the student's own stops alone where not given.
        space: the row in which errors are squared.
    """

    cycle: ClassVar[Cycle] = ONE_TURN
    drift: float = 1.0
    times: AnyTimeLaw | None = None
    space: RowName = "v"

    def __post_init__(self) -> None:
        if self.drift < 0:
            raise ValueError(f"drift is {self.drift:g}: below 0 it leads away from the distilled model")

    @property
    def needs(self) -> Needs:
        return Needs(images=True, real_score=self.drift > 0)

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        if self.times is None:
            t, _ = drawn_step(edges_of(roles, batch), batch)
        else:
            t = self.times.sample(roles.process, batch.size, batch.rng)
        start, row = noised(roles, batch, t), ROWS[self.space]
        belief = through(roles.generator, start.x_t, t, batch.cond)
        terms = {"denoise": denoising_loss(belief, start, space=self.space)}
        if not self.drift:
            return terms
        before = look(roles.real_score, start.x_t, t, batch.cond)
        return terms | {"drift": self.drift * (belief.output(row) - before.output(row)).square().mean()}
