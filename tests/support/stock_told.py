"""What a stock call tells its network and its scheduler, and whether ours says the same."""

from functools import wraps
from types import SimpleNamespace
from typing import Any

import pytest
from diffusers import (
    DiffusionPipeline,
)
from torch import Tensor


def watch(pipe: DiffusionPipeline, monkeypatch: pytest.MonkeyPatch, **call: Any) -> list[SimpleNamespace]:
    """What a stock call tells its network and its scheduler at each step."""
    steps: list[SimpleNamespace] = []
    network = pipe.components.get("unet") or pipe.components["transformer"]
    step = pipe.scheduler.step

    @wraps(step)
    def watched_step(output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        steps.append(SimpleNamespace(told=told[-1], output=output.clone(), timestep=timestep, sample=sample.clone()))
        return step(output, timestep, sample, *args, **kwargs)

    told: list[dict[str, Any]] = []
    hook = network.register_forward_pre_hook(lambda _net, _args, kwargs: told.append(kwargs), with_kwargs=True)
    with monkeypatch.context() as patch:
        patch.setattr(pipe.scheduler, "step", watched_step)
        pipe(**call, output_type="latent" if "vae" in pipe.components else "pt")
    hook.remove()
    return steps


def agree(ours: Tensor, theirs: Tensor, tolerance: float = 2e-5) -> None:
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < tolerance
