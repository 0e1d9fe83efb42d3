"""Whether a student's steps are trained by the stages of a run."""

import torch

from ..config.schema import Config, StageConfig
from ..errors import UserError
from ..models.walk import Plan
from ..process import Process


def check_grids(config: Config, plan: Plan, process: Process) -> None:
    """Refuses, before anything is trained, a student of this process with steps that a stage leaves untrained.

    Raises:
        UserError: naming the stage, the step count and its times.
    """
    for stage in config.stages:
        _check_noise(stage, plan, process)
        for grid in plan.grids if stage.objective.needs.experts else ():
            above, n = int((grid >= plan.boundary).sum()), len(grid)
            if above in (0, n):
                raise UserError(
                    f"stage {stage.name!r} trains each expert in a phase of its own, but of {n} steps, at the times "
                    f"{', '.join(f'{t:.3g}' for t in grid.tolist())}, none lies "
                    f"{'below' if above else 'at or above'} the boundary {plan.boundary:.3g}: choose student.shift "
                    "or student.steps so that each expert has a step, or set objective.experts=false"
                )


def _check_noise(stage: StageConfig, plan: Plan, process: Process) -> None:
    """Refuses a student with a step below the noise that the stage trains."""
    wanted = stage.objective.needs.noise
    t = torch.stack([grid[-1] for grid in plan.grids]).min().clamp(max=1)  # float32 leads a little beyond 1
    least = float(process.sigma(t) / process.alpha(t))
    if least < wanted:
        raise UserError(
            f"stage {stage.name!r} trains nothing below noise {wanted:g} (objective.truncation), but a step of the "
            f"student starts at {least:.3g}: lower the truncation, declare fewer student.steps, or move a flow's up by "
            "student.shift"
        )
