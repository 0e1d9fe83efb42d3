"""Processes that look after each other, without a run."""

import os
import signal
import sys

import small_run
import torch.distributed as dist

from fastgen.errors import PeerError
from fastgen.peers import together


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


def test_one_that_is_lost_before_its_first_sign_of_life_is_missed(capsys):
    assert small_run.in_processes(2, lose_the_second_at_once) == [6, -9]
    assert "was killed, perhaps for lack of memory" in capsys.readouterr().out
