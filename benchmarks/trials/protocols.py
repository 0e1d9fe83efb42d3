"""How trials on each teacher get their data, and how they are measured while they train and by `python -m eval`.

`emoji_half` trains on the captions of half of the names and has CLIP scores of both halves, also by a judge where
`python -m benchmarks.judge` left one in OUT/shared/judge or ASSETS/judge.
"""

import hashlib
import io
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from fastgen.errors import UserError

UNSEEN = 500  # captions of a known name and a known style that no image has
VARIETY = 1000  # captions of which four samples each are compared


@dataclass(frozen=True)
class Protocol:
    """What trials share.

    Attributes:
        prepare: (assets, folder) -> makes the files that the commands name.
        places: (assets, folder, source of data) -> overrides of a config.
        watched: (assets, folder) -> overrides that measure while it trains.
        reports: (assets, folder) -> options of `python -m eval` by the report's name.
    """

    prepare: Callable[[Path, Path], None]
    places: Callable[[Path, Path, str], list[str]]
    watched: Callable[[Path, Path], list[str]]
    reports: Callable[[Path, Path], Mapping[str, list[str]]]


def captions(assets: Path) -> list[dict[str, Any]]:
    """Caption, name and style of every emoji."""
    return pq.read_table(assets / "data/emoji/train.parquet", columns=["caption", "name", "style"]).to_pylist()


def unseen(rows: list[dict[str, Any]], count: int = UNSEEN) -> list[str]:
    """Captions of names and styles that both occur, but not together; always the same."""
    together = {(row["name"], row["style"]) for row in rows}
    names, styles = (sorted({row[key] for row in rows}) for key in ("name", "style"))
    apart = [f"{name}, {style}" for name in names for style in styles if (name, style) not in together]
    return random.Random(0).sample(apart, min(count, len(apart)))


def halves(rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Captions to train on, and the others: by a digest of the name, so that no name is in both."""
    found: dict[str, list[str]] = {"trained": [], "other": []}
    for row in rows:
        found["other" if hashlib.sha256(row["name"].encode()).digest()[0] % 2 else "trained"].append(row["caption"])
    return found


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


def _cifar10(assets: Path, folder: Path) -> dict[str, list[str]]:
    extractor = f"{assets}/extractors/cifar10_resnet"
    options = ["--reference", f"{extractor}/cifar10_train_stats.npz"]
    options += ["--real-images", f"{assets}/data/cifar10/test.parquet"]
    options += ["--extractor", extractor, "--extractor-size", "96", "--extractor-range", "-1", "1"]
    options += ["--metrics", "fid,accuracy,diversity,nyquist_peak,spectrum", "--dtype", "autocast"]
    return {"": [*options, "--num-images", "10000", "--batch-size", "1000"]}


def _emoji_files(assets: Path, folder: Path) -> None:
    rows = captions(assets)
    seen = [row["caption"] for row in rows]
    varied = seen[:: max(1, len(seen) // VARIETY)][:VARIETY]
    lists = {"seen": seen, "unseen": unseen(rows), "variety": varied, **halves(rows)}
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


def _emoji(assets: Path, folder: Path) -> dict[str, list[str]]:
    return {
        "seen": _sampled(assets, folder, "seen", metrics="fid,prdc,clip_score,colour,spectrum"),
        "unseen": _sampled(assets, folder, "unseen", metrics="fid,clip_score"),
        "variety": _sampled(assets, folder, "variety", metrics="diversity", each=4),
    }


def _sampled(
    assets: Path, folder: Path, prompts: str, *, metrics: str, each: int = 1, clip: Path | None = None
) -> list[str]:
    """Options for samples of a file of prompts, whose CLIP score is the extractor's, or that of another model."""
    file, extractor = folder / f"{prompts}.txt", assets / "extractors/emoji_clip"
    count = each * len(file.read_text(encoding="utf-8").splitlines())
    named = ["--prompts", str(file), "--reference", f"{assets}/data/emoji/train.parquet", "--allow-small"]
    looked = ["--protocol", "clip", "--extractor", str(extractor), "--clip", str(clip or extractor)]
    return [*named, *looked, "--metrics", metrics, "--num-images", str(count), "--batch-size", "256"]


def _half_places(assets: Path, folder: Path, source: str) -> list[str]:
    """Half of the captions.

    Raises:
        UserError: the config reads images, which would be those of all captions.
    """
    if source != "prompts":
        raise UserError(f"the protocol emoji_half trains on half of the captions, not on {source}: use prompts")
    return [f"teacher.path={assets}/teachers/emoji", f"data.path={folder / 'trained.txt'}", "cache=null"]


def _half(assets: Path, folder: Path) -> dict[str, list[str]]:
    """Looks at all emoji, and CLIP scores of each half by the model that rewards and, if there is one, the judge."""
    judge = next((place for place in (folder / "judge", assets / "judge") if place.is_dir()), None)
    looks = {"": None} if judge is None else {"": None, "judge_": judge}
    scores = {
        f"{name}{half}": _sampled(assets, folder, half, metrics="clip_score", clip=clip)
        for name, clip in looks.items()
        for half in ("trained", "other")
    }
    return _emoji(assets, folder) | scores


_EMOJI = Protocol(_emoji_files, _emoji_places, _emoji_watched, _emoji)

PROTOCOLS: Mapping[str, Protocol] = {
    "cifar10": Protocol(_cifar10_files, _cifar10_places, _cifar10_watched, _cifar10),
    "emoji": _EMOJI,
    "emoji_half": replace(_EMOJI, places=_half_places, reports=_half),
}
