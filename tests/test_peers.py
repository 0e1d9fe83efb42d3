"""Processes that look after each other, without a run."""

import os
import signal
import sys
from pathlib import Path

import pytest
import small_run
import torch.distributed as dist

from fastgen.config.yaml_file import load
from fastgen.distillation.distil import accelerator_of
from fastgen.errors import PeerError
from fastgen.peers import together

DIGITS = Path(__file__).parents[1] / "configs/digits/dmd2_1step.yaml"


def lose_the_second_at_once() -> None:
    """In one of two processes: the second is killed before it has given a sign of life, and the first waits for it."""
    dist.init_process_group("gloo")
    try:
        with together(3):
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            dist.barrier()
    except PeerError as error:
        print(error)
        sys.exit(error.exit_code)


@pytest.mark.slow
def test_one_that_is_lost_before_its_first_sign_of_life_is_missed(capsys):
    assert small_run.in_processes(2, lose_the_second_at_once) == [6, -9]
    assert "was killed, perhaps for lack of memory" in capsys.readouterr().out


@pytest.mark.parametrize(("told", "left"), [(None, "0"), ("1", "1")])
def test_nccl_s_own_monitor_is_quiet_unless_someone_wants_it(told, left, monkeypatch):
    """A process of its own would print a trace when the one with the store leaves first: seen with two GPUs."""
    monkeypatch.setenv("TORCH_NCCL_ENABLE_MONITORING", told or "")
    if told is None:
        monkeypatch.delenv("TORCH_NCCL_ENABLE_MONITORING")
    accelerator_of(load(DIGITS, ["device=cpu"]))
    assert os.environ["TORCH_NCCL_ENABLE_MONITORING"] == left
