"""Roles that speak another process than their network: the same samples from the same noise."""

import pytest
import tiny
import torch

from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.process import Flow, Trig
from fastgen.process.retold import retold
from fastgen.sampling.sampler import ode, renoise

GRID = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
FAMILIES = {"classes": tiny.class_conditional, "vp": tiny.ddpm, "edm": tiny.consistency}


@pytest.fixture(scope="module", params=FAMILIES)
def pipeline(request):
    return Pipeline(FAMILIES[request.param]())


@pytest.mark.parametrize("name", ["flow", "trig"])
def test_a_retold_network_samples_as_the_native_one(pipeline, name):
    native = pipeline.denoiser()
    process = retold(name, native.process)
    spoken = RetargetedDenoiser(native, process)
    labels = torch.tensor([0, 1, 2]) if pipeline.kind == "label" else None
    cond, noise = pipeline.condition(3, labels=labels), torch.randn(4, 3, *pipeline.shape)
    grid = process.grid_of(GRID).tolist()
    told, plain = (ode(model, noise[0], cond, g) for model, g in ((spoken, grid), (native, GRID.tolist())))
    torch.testing.assert_close(told, plain, rtol=1e-4, atol=1e-4)
    streams = [iter(noise), iter(noise)]
    told = renoise(spoken, lambda: next(streams[0]), cond, grid)
    plain = renoise(native, lambda: next(streams[1]), cond, GRID.tolist())
    torch.testing.assert_close(told, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "process"), [("flow", Flow()), ("trig", Trig()), ("native", Flow())])
def test_a_process_is_not_retold_as_itself(name, process):
    assert retold(name, process) is process
    assert torch.equal(process.grid_of(GRID), GRID)
