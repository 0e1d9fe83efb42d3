"""Something happens to one of two processes: both end soon, by the same words; nothing is lost, and it goes on."""

import time

import faults
import pytest
import small_run
import tiny
import torch

WEIGHTS = "student/unet/diffusion_pytorch_model.safetensors"
KILLED = -9
ENDS = {  # fault -> exit codes, what the first process says, the cycle of the newest checkpoint
    "told": ((143, 143), "stopped by SIGTERM: saved at 6 images of stage 'kd'; go on with", 3),
    "killed": ((6, KILLED), "process 1 (pid ", 2),
    "the first killed": ((KILLED, 6), "", 2),
    "stopped": ((6, KILLED), "has not answered for 3 s", 2),
    "the first stopped": ((KILLED, 6), "", 2),
    "told while loading": ((143, 143), "SIGTERM", 0),
    "bad image": ((2, 2), "stopped: UserError: image 7.png cannot be read", 2),
    "bug": ((1, 1), "stopped: ZeroDivisionError: a bug", 2),
    "not a number": ((4, 4), "generator/grad is nan", 2),
    "full disk": ((3, 3), "No space left on device", 2),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a teacher and `whole`, a run of two processes to which nothing happened."""
    folder = tmp_path_factory.mktemp("faults")
    tiny.class_conditional(size=16, channels=1).save_pretrained(folder / "teacher")
    assert small_run.in_processes(2, faults.carried_out, faults.short(folder, "whole"), False, None) == [0, 0]
    return folder


def ended(config, fault, codes):
    """What each of two processes says on stderr to which a fault happens, and that ends by these codes."""
    start = time.monotonic()
    found = small_run.in_processes(2, faults.carried_out, config, False, fault)
    said = [config.out.with_suffix(f".{rank}").read_text() for rank in (0, 1)]
    print(f"{fault}: {found} after {time.monotonic() - start:.1f} s", *said, sep="\n--- ")
    assert found == list(codes)
    return said


@pytest.mark.slow
@pytest.mark.parametrize("fault", ENDS)
def test_what_happens_to_one_process_ends_both_and_loses_nothing(folder, fault):
    codes, words, cycle = ENDS[fault]
    config = faults.short(folder, fault.replace(" ", "-"))
    said = ended(config, fault, codes)
    assert words in said[0]
    for one in said:
        assert "Traceback" not in one or fault == "bug"
        assert "gloo" not in one
    steps = [int(path.name) for path in (config.out / "checkpoints").glob("*")]
    assert max(steps, default=0) == 2 * cycle
    assert small_run.in_processes(2, faults.carried_out, config, True, None) == [0, 0]
    assert (config.out / WEIGHTS).read_bytes() == (folder / "whole" / WEIGHTS).read_bytes()
    assert (config.out / "log.jsonl").read_bytes() == (folder / "whole" / "log.jsonl").read_bytes()


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("fault", ["told", "killed", "stopped", "bad image", "not a number", "full disk"])
def test_two_gpus_end_by_the_same_words_and_go_on(folder, fault):
    """Through NCCL: about twenty seconds a fault."""
    codes, words, cycle = ENDS[fault]
    config = faults.short(folder, f"gpu-{fault.replace(' ', '-')}", device="cuda")
    said = ended(config, fault, codes)
    assert words in said[0]
    told = [line for one in said for line in one.splitlines() if "destroy_process_group() was not called" not in line]
    assert not any("NCCL" in line or "Traceback" in line for line in told)
    assert max(int(path.name) for path in (config.out / "checkpoints").glob("*")) == 2 * cycle
    assert small_run.in_processes(2, faults.carried_out, config, True, None) == [0, 0]
    assert len((config.out / "log.jsonl").read_text().splitlines()) == 4
