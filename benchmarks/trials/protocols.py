"""How trials on each teacher get their data, and how they are measured while they train and by `python -m eval`."""

import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

UNSEEN = 500  # captions of a known name and a known style that no image has
VARIETY = 1000  # captions of which four samples each are compared


@dataclass(frozen=True)
class Protocol:
    """What trials share.

    Attributes:
        prepare: (assets, folder) -> makes the files that the commands name.
        places: (assets, folder, source of data) -> overrides of a config.
        watched: (assets, folder) -> overrides that measure while it trains.
        reports: name -> (assets, folder) -> options of `python -m eval`.
    """

    prepare: Callable[[Path, Path], None]
    places: Callable[[Path, Path, str], list[str]]
    watched: Callable[[Path, Path], list[str]]
    reports: Mapping[str, Callable[[Path, Path], list[str]]]


def captions(assets: Path) -> list[dict[str, Any]]:
    """Caption, name and style of every emoji."""
    return pq.read_table(assets / "data/emoji/train.parquet", columns=["caption", "name", "style"]).to_pylist()


def unseen(rows: list[dict[str, Any]], count: int = UNSEEN) -> list[str]:
    """Captions of names and styles that both occur, but not together; always the same."""
    together = {(row["name"], row["style"]) for row in rows}
    names, styles = (sorted({row[key] for row in rows}) for key in ("name", "style"))
    apart = [f"{name}, {style}" for name in names for style in styles if (name, style) not in together]
    return random.Random(0).sample(apart, min(count, len(apart)))


def _cifar10_files(assets: Path, folder: Path) -> None:
    """The extractor with a file that says how its images are made, for the quick measurements."""
    source, copy = assets / "extractors/cifar10_resnet", folder / "extractor"
    copy.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors"):
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to((source / name).resolve())
    grey = [0.5, 0.5, 0.5]
    how = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": 96, "width": 96}}
    how |= {"resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    (copy / "preprocessor_config.json").write_text(json.dumps(how | {"image_mean": grey, "image_std": grey}))


def _cifar10_places(assets: Path, folder: Path, source: str) -> list[str]:
    data = [f"data.path={assets}/data/cifar10/train.parquet"] if source == "parquet" else []
    return [f"teacher.path={assets}/teachers/cifar10", *data]


def _cifar10_watched(assets: Path, folder: Path) -> list[str]:
    statistics = assets / "extractors/cifar10_resnet/cifar10_train_stats.npz"
    how = {"protocol": "domain", "extractor": folder / "extractor", "reference": statistics, "num": 2000, "every": 5120}
    return _evaluate(how)


def _cifar10(assets: Path, folder: Path) -> list[str]:
    extractor = f"{assets}/extractors/cifar10_resnet"
    options = ["--reference", f"{extractor}/cifar10_train_stats.npz"]
    options += ["--real-images", f"{assets}/data/cifar10/test.parquet"]
    options += ["--extractor", extractor, "--extractor-size", "96", "--extractor-range", "-1", "1"]
    options += ["--metrics", "fid,accuracy,diversity,nyquist_peak,spectrum", "--dtype", "autocast"]
    return [*options, "--num-images", "10000", "--batch-size", "1000"]


def _emoji_files(assets: Path, folder: Path) -> None:
    rows = captions(assets)
    seen = [row["caption"] for row in rows]
    lists = {"seen": seen, "unseen": unseen(rows), "variety": seen[:: len(seen) // VARIETY][:VARIETY]}
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in lists.items():
        _written(folder / f"{name}.txt", lines)


def _written(file: Path, lines: list[str]) -> None:
    text = io.StringIO()
    text.writelines(f"{line}\n" for line in lines)
    file.write_text(text.getvalue(), encoding="utf-8")


def _emoji_places(assets: Path, folder: Path, source: str) -> list[str]:
    data = folder / "seen.txt" if source == "prompts" else assets / "data/emoji/train.parquet"
    return [f"teacher.path={assets}/teachers/emoji", f"data.path={data}", "cache=null"]


def _emoji_watched(assets: Path, folder: Path) -> list[str]:
    reference = assets / "data/emoji/train.parquet"
    extractor = assets / "extractors/emoji_clip"
    return _evaluate({"protocol": "clip", "extractor": extractor, "reference": reference, "num": 1000, "every": 8192})


def _evaluate(how: Mapping[str, object]) -> list[str]:
    return [*(f"evaluate.{name}={value}" for name, value in how.items()), "evaluate.keep_best=false"]


def _emoji(prompts: str, count: int, metrics: str) -> Callable[[Path, Path], list[str]]:
    def options(assets: Path, folder: Path) -> list[str]:
        clip = f"{assets}/extractors/emoji_clip"
        named = ["--prompts", f"{folder}/{prompts}.txt", "--reference", f"{assets}/data/emoji/train.parquet"]
        looked = ["--protocol", "clip", "--extractor", clip, "--clip", clip, "--allow-small", "--metrics", metrics]
        return [*named, *looked, "--num-images", str(count), "--batch-size", "256"]

    return options


PROTOCOLS: Mapping[str, Protocol] = {
    "cifar10": Protocol(_cifar10_files, _cifar10_places, _cifar10_watched, {"": _cifar10}),
    "emoji": Protocol(
        _emoji_files,
        _emoji_places,
        _emoji_watched,
        {
            "seen": _emoji("seen", 7920, "fid,prdc,clip_score,colour,spectrum"),
            "unseen": _emoji("unseen", UNSEEN, "fid,clip_score"),
            "variety": _emoji("variety", 4 * VARIETY, "diversity"),
        },
    ),
}
