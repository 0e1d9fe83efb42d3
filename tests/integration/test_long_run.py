"""A long run, killed and resumed on the way: memory, open files and what is written stay what they were, by step.

20,000 updates of a tiny network on digits; slow, since that takes half an hour. FASTGEN_LONG_RUN sets another number.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import small_run
import tiny
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fastgen.config.schema import Config
from fastgen.distillation.distil import distil
from fastgen.engine import stage as loop

UPDATES = int(os.environ.get("FASTGEN_LONG_RUN", "20000"))
LOOKS = 40
MIB = 2**20


def watched(config: Config, resume: bool, file: Path, at: int | None) -> None:
    """In a process of its own: a run that notes what it holds now and then, and is killed at an update."""
    cycle, process = loop.Stage.cycle, psutil.Process()

    def noted(self: loop.Stage) -> dict[str, float]:
        done = self.position.cycle
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if done % (UPDATES // LOOKS) == 0:
            with file.open("a") as lines:
                lines.write(f"{done} {process.memory_info().rss} {process.num_fds()} {process.num_threads()}\n")
        return cycle(self)

    loop.Stage.cycle = noted  # type: ignore[method-assign]
    distil(config, recipes=config.out.parent, resume=resume)


def steps_in(folder: Path) -> list[int]:
    """The steps of a loss that TensorBoard shows."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [event.step for event in accumulator.Scalars("generator/regression")]


def sizes(folder: Path) -> Iterator[int]:
    return (file.stat().st_size for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_a_long_run_grows_by_nothing_but_its_log(tmp_path: Path):
    tiny.class_conditional(size=16, channels=1).save_pretrained(tmp_path / "teacher")
    train = {"images": UPDATES, "batch": 1, "ema": 0.9}
    config = small_run.run_config(
        tmp_path,
        student={"steps": [1]},
        stages=[{"objective": {"name": "kd"}, "train": train}],
        log={"every": 1, "previews": 4, "trackers": ["tensorboard"]},
        checkpoints={"every": UPDATES // 20},
        evaluate={"protocol": "digits", "num": 20, "every": UPDATES // 20, "keep_best": False},
    )
    file, killed = tmp_path / "held", UPDATES // 2 + UPDATES // 40 + 7
    for resume, at, code in ((False, killed, -signal.SIGKILL), (True, None, 0)):
        process = small_run.PROCESSES.Process(target=watched, args=(config, resume, file, at))
        process.start()
        process.join()
        assert process.exitcode == code
    held = [[int(value) for value in line.split()] for line in file.read_text().splitlines()]
    log = [json.loads(line) for line in (config.out / "log.jsonl").read_text().splitlines()]
    logged = [line["cycle"] for line in log if "generator/regression" in line]
    shown = steps_in(config.out / "trackers" / "fastgen")
    tensorboard, lines = sum(sizes(config.out / "trackers")), (config.out / "log.jsonl").stat().st_size
    early, late = (
        [rss / MIB for done, rss, _, _ in held if low <= done / UPDATES < high] for low, high in ((0.1, 0.3), (0.8, 1))
    )
    print(
        f"{UPDATES} updates, killed at {killed}: RSS {max(early):.0f} MiB early, {max(late):.0f} MiB late; descriptors "
        f"{min(fds for _, _, fds, _ in held)}-{max(fds for _, _, fds, _ in held)}; threads "
        f"{max(threads for *_, threads in held)}; log {lines / UPDATES:.0f} bytes and TensorBoard "
        f"{tensorboard / UPDATES:.0f} bytes an update; checkpoints {sum(sizes(config.out / 'checkpoints')) / MIB:.1f} "
        f"MiB; previews {len(list((config.out / 'previews').iterdir()))}"
    )
    assert logged == list(range(1, UPDATES + 1))
    assert shown == list(range(1, UPDATES + 1))
    assert max(late) < max(early) + 20
    assert max(fds for _, _, fds, _ in held) <= min(fds for _, _, fds, _ in held) + 3
    assert len({threads for *_, threads in held}) <= 3
    assert lines < 400 * UPDATES
    assert tensorboard < 600 * UPDATES + MIB, "and pictures"
    assert len(list((config.out / "checkpoints").iterdir())) == config.checkpoints.keep
