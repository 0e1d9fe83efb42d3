"""The scheduler that a stock pipeline will run a student with, chosen before training."""

from typing import Any, Literal

from diffusers import DDIMScheduler, LCMScheduler

from ..errors import UserError
from ..process import Discrete, from_scheduler

Sampler = Literal["renoise", "ode"]
_BETAS = ("beta_schedule", "beta_start", "beta_end", "trained_betas", "num_train_timesteps", "rescale_betas_zero_snr")


def few_step_scheduler(scheduler: Any, steps: tuple[int, ...], *, sampler: Sampler) -> Any:
    """A stock scheduler that does, for each declared step count, exactly what the student was trained for.

    renoise: LCM's step (predict x0, add fresh noise), its consistency boundary scaled away, on an even grid of
    the largest count. ode: DDIM with trailing times and a clean end.

    Raises:
        UserError: no stock scheduler does that for this process or these counts.
    """
    if not isinstance(from_scheduler(scheduler).process, Discrete):
        raise UserError(
            f"students of {type(scheduler).__name__} pipelines cannot be exported yet: only variance-preserving "
            "ones (DDPM, DDIM, PNDM, Euler ... schedulers) can"
        )
    trained = scheduler.config.num_train_timesteps
    betas = {key: scheduler.config[key] for key in _BETAS if key in scheduler.config}
    common = {**betas, "prediction_type": scheduler.config.get("prediction_type", "epsilon"), "clip_sample": False}
    common["steps_offset"] = 1  # read by neither, but Stable Diffusion warns of any other value
    if sampler == "renoise":
        _check_counts(steps, trained, lambda n: max(steps) % n == 0 and trained % max(steps) == 0)
        return LCMScheduler(**common, original_inference_steps=max(steps), timestep_scaling=1e9)
    _check_counts(steps, trained, lambda n: trained % n == 0)
    return DDIMScheduler(**common, timestep_spacing="trailing", set_alpha_to_one=True)


def _check_counts(steps: tuple[int, ...], trained: int, served: Any) -> None:
    refused = [n for n in steps if not served(n)]
    if refused:
        raise UserError(
            f"one stock scheduler cannot serve {', '.join(map(str, refused))} of the declared step counts "
            f"{', '.join(map(str, steps))} on {trained} trained steps: declare counts that divide the largest, which "
            f"divides {trained}, e.g. 1, 2, 4, 8"
        )
