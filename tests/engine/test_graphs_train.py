"""A stage with graphs trains as one without."""

import pytest
import torch
from accelerate import Accelerator

from benchmarks.networks import SIZES
from benchmarks.trio import Setting, stage_on
from fastgen.engine.stage import Stage

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def same_convolutions(monkeypatch):
    """cuDNN times its convolutions and takes the fastest, which beside other work is not the same one twice."""
    monkeypatch.setattr("benchmarks.trio.search_convolutions", lambda _: None)
    with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
        yield


def trained(setting, cycles=5):
    torch.manual_seed(0)
    stage = stage_on(SIZES["tiny"], setting, Stage, Accelerator())
    figures = [stage.cycle() for _ in range(cycles)]
    return figures, {role: stage.roles[role].state_dict() for role in stage.roles.own}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("gan", [False, True])
@pytest.mark.parametrize("sharing", ["lora", "full"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_stage_trains_as_without(sharing, gan, checkpointing, precision):
    told = {"sharing": sharing, "rank": 2, "gan": gan, "checkpointing": checkpointing, "precision": precision}
    with_graphs, without = (trained(Setting(graphs=graphs, fake_turns=2, **told)) for graphs in (True, False))
    for found, wanted in zip(with_graphs[0], without[0], strict=True):
        assert found == pytest.approx(wanted, rel=2e-2 if precision == "bf16" else 1e-3)
    for role, state in without[1].items():
        for name, value in state.items():
            torch.testing.assert_close(with_graphs[1][role][name], value, rtol=1e-3, atol=1e-5, msg=f"{role}.{name}")
