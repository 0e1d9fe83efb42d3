"""On a GPU the host waits once a turn for its figures, when the cycle's turns are all queued, and for nothing else."""

import traceback
import warnings

import pytest
import torch
from accelerate import Accelerator

from benchmarks.networks import SIZES
from benchmarks.trio import Setting, stage_on
from fastgen.engine.stage import Stage


@pytest.mark.gpu
@pytest.mark.parametrize("gan", [False, True])
def test_a_cycle_waits_for_its_figures_alone(gan: bool, monkeypatch: pytest.MonkeyPatch):
    setting = Setting(batch=4, rank=4, gan=gan, fake_turns=2, checkpointing=False)
    stage = stage_on(SIZES["tiny"], setting, Stage, Accelerator())
    for _ in range(2):  # what is made once: moments, tables, workspaces
        stage.cycle()
    waited: list[list[str]] = []

    def show(message: object, *_: object) -> None:
        if "called a synchronizing" in str(message):
            waited.append([f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_stack()])

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(warnings, "showwarning", show)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            stage.cycle()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    others = [frames for frames in waited if not any(frame.endswith(" figures") for frame in frames)]
    assert not [frames[-4:] for frames in others]
    assert len(waited) == len(stage.config.objective.cycle)
