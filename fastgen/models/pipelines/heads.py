"""A last layer for each step of a student, beside its pipeline's weights: written, read, and taken in turn.

A stock pipeline has one last layer. Users change it between steps by `callback_on_step_end`, as the model card shows;
pipelines that are opened here do so by themselves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...errors import UserError
from .arguments import parameters
from .stock_pipeline import StockPipeline

CALLBACK = "callback_on_step_end"


@dataclass(frozen=True, eq=False)
class StepHeads:
    """The last layers of a student that has another one at each step.

    Args:
        layer: component and name of the layer, such as "unet.conv_out".
        weights: count n of several steps -> the layer's weight at each of them, [n, out, in, ...] in float32.
    """

    FILE = "heads.safetensors"

    layer: str
    weights: Mapping[int, Tensor]

    @classmethod
    def read(cls, folder: Path) -> "StepHeads | None":
        """The heads in a pipeline folder; None where it has none."""
        if not (folder / cls.FILE).is_file():
            return None
        with safe_open(folder / cls.FILE, framework="pt") as file:
            return cls(file.metadata()["layer"], {int(n): file.get_tensor(n) for n in file.keys()})  # noqa: SIM118

    def of(self, steps: Sequence[int]) -> "StepHeads | None":
        """The heads of some step counts; None for one step alone, whose head is in the pipeline's own weights."""
        weights = {n: weight for n, weight in self.weights.items() if n in steps}
        return StepHeads(self.layer, weights) if weights else None

    def write(self, folder: Path) -> None:
        """Writes the file into a pipeline folder."""
        tensors = {str(n): weight.float().cpu().contiguous() for n, weight in self.weights.items()}
        save_file(tensors, folder / self.FILE, metadata={"layer": self.layer})

    def put_on(self, pipe: StockPipeline) -> None:
        """Gives each step of the pipeline's calls its own last layer from now on, at step counts that have heads."""
        component, _, name = self.layer.partition(".")
        layer = pipe.components[component].get_submodule(name)
        _Turns(layer, self.weights).attend(pipe.scheduler)


class _Turns:
    """Which head a layer has, by what its scheduler is asked."""

    def __init__(self, layer: Any, heads: Mapping[int, Tensor]) -> None:
        self.layer, self.heads = layer, heads
        self.own = layer.weight.detach().clone()
        self.turn: list[Tensor] = []

    def attend(self, scheduler: Any) -> None:
        """Follows the scheduler's steps; others look into the signatures of its methods."""
        set_timesteps, step = scheduler.set_timesteps, scheduler.step

        @wraps(set_timesteps)
        def begun(*args: Any, **kwargs: Any) -> Any:
            answer = set_timesteps(*args, **kwargs)
            self.turn = [*self.heads.get(len(scheduler.timesteps), ())]
            self._next()
            return answer

        @wraps(step)
        def stepped(*args: Any, **kwargs: Any) -> Any:
            answer = step(*args, **kwargs)
            self._next()
            return answer

        scheduler.set_timesteps, scheduler.step = begun, stepped

    @torch.no_grad()
    def _next(self) -> None:
        self.layer.weight.copy_(self.turn.pop(0) if self.turn else self.own)


def check_callback(pipe: StockPipeline) -> None:
    """Refuses a pipeline whose call lets nobody change its last layer between two steps.

    Raises:
        UserError: it takes no `callback_on_step_end`.
    """
    if CALLBACK not in parameters(pipe):
        raise UserError(
            f"a student with heads has another last layer at each step, but the call of {type(pipe).__name__} takes no "
            f"{CALLBACK}, by which it could be changed: declare one step (student.steps=[1]), whose head is fused into "
            "the weights"
        )
