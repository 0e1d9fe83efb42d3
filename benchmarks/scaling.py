r"""Images per second of a DMD2 trio on several cards of one host, against one: each card has the same batch.

    python -m benchmarks.scaling --size cifar --sharing full --batch 256 --gan --cards 1 2 --out scaling.json

Each number of cards is a run of its own under torchrun. Efficiency is images per second over as many times those of
the fewest cards. With `--sharding full` every run of several cards has its networks in slices.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from fastgen.config.schema import StageConfig
from fastgen.engine.feed import Feed
from fastgen.engine.sharding import shard_roles
from fastgen.models.roles import Roles
from fastgen.models.sharding import Sharding

from .networks import SIZES
from .step import Timed
from .trio import Setting, stage_on
from .watches import Watch, medians, peak


def timed_stage(
    setting: Setting, size: str, accelerator: Accelerator, sharding: Sharding, *, micro_batch: int | None = None
) -> Timed:
    """The trio on this process, in slices where asked to; the teacher's whole network is put away then."""

    class Scaled(Timed):
        """A stage whose networks may be sharded."""

        def __init__(self, config: StageConfig, roles: Roles, feed: Feed, accelerator: Accelerator) -> None:
            config = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": micro_batch})})
            if shard_roles(roles, sharding, accelerator.device):
                feed.pipeline.network.to("cpu")
            super().__init__(config, roles, feed, accelerator)
            self.watch = Watch(accelerator.device)

    stage = stage_on(SIZES[size], setting, Scaled, accelerator)
    assert isinstance(stage, Timed)
    return stage


def measured(told: argparse.Namespace) -> dict[str, Any]:
    """The figures of this run, the same on all of its processes but for the memory."""
    accelerator = Accelerator(cpu=told.device == "cpu")
    cards, device = accelerator.num_processes, accelerator.device
    setting = Setting(
        sharing=told.sharing,
        rank=told.rank,
        batch=told.batch * cards,
        gan=told.gan,
        checkpointing=told.checkpointing,
        graphs=told.graphs and told.sharding == "none",
        precision=told.precision,
        fake_turns=told.fake_turns,
    )
    stage = timed_stage(setting, told.size, accelerator, told.sharding)
    laps = [stage.lap() for _ in range(told.warmup + told.cycles)]
    seconds = medians(laps[told.warmup :])
    images = setting.batch * (1 + setting.fake_turns)
    accelerator.end_training()
    return {
        "cards": cards,
        "seconds": seconds,
        "images_per_second": images / seconds["cycle"],
        "peak_gib": peak(device),
        "first": accelerator.is_main_process,
    }


def efficiencies(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By the number of cards, how many times as fast as the run of fewest, and that over how many times the cards."""
    fewest = min(runs, key=lambda run: int(run["cards"]))
    found = {}
    for run in runs:
        times = run["images_per_second"] / fewest["images_per_second"]
        found[str(run["cards"])] = {"times": times, "efficiency": times * fewest["cards"] / run["cards"]}
    return found


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and, where asked to, writes the figures; of one run alone where torchrun started it."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    told = _parser().parse_args(arguments)
    if told.into is not None:
        run = measured(told)
        if run.pop("first"):
            told.into.write_text(json.dumps(run), encoding="utf-8")
        return run
    runs = [_started(count, arguments) for count in told.cards]
    setting = {name: value for name, value in vars(told).items() if name not in ("cards", "out", "into")}
    found = {"setting": setting, "runs": runs, "against the fewest cards": efficiencies(runs)}
    text = json.dumps(found, indent=2)
    print(text)
    if told.out:
        told.out.write_text(text + "\n", encoding="utf-8")
    return found


def _started(cards: int, arguments: Sequence[str]) -> dict[str, Any]:
    """The figures of a run on so many cards."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.json"
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(cards)]
        command = [sys.executable, *launcher, "-m", "benchmarks.scaling", *arguments, "--into", str(file)]
        subprocess.run(command, check=True)
        run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return run


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.splitlines()[0])
    parser.add_argument("--cards", type=int, nargs="+", default=[1, 2], help="numbers of processes, one run for each")
    parser.add_argument("--size", choices=SIZES, default="cifar")
    parser.add_argument("--sharing", choices=("lora", "full"), default="full")
    parser.add_argument("--sharding", choices=("none", "full", "host"), default="none")
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch", type=int, default=256, help="of each card")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--fake-turns", type=int, default=4, help="of a cycle")
    for name, default in (("gan", False), ("checkpointing", False), ("graphs", True)):
        parser.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=default)
    parser.add_argument("--cycles", type=int, default=3, help="that the medians are of")
    parser.add_argument("--warmup", type=int, default=2, help="cycles before them")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
