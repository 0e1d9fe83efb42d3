"""What a pipeline draws: how much of it is in a style, and how it stands to that style's real images."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupShuffleSplit

from eval.metrics_json import Report
from eval.networks.protocols import build_extractor
from eval.options import Options
from fastgen.data.parquet import ParquetImages

from ..record import ROOT
from ..trials.record import Record, Row, rounded

HELD_OUT = 0.2  # share of the names on which the classifier is judged
SCALE = 10.0  # length of the features that it sees


@dataclass(frozen=True)
class Classifier:
    """Reads the style of a picture from CLIP features by logistic regression.

    Attributes:
        accuracy: on real images of names that another one was not trained on; this one is trained on all.
    """

    extractor: Any
    model: LogisticRegression
    accuracy: float

    @classmethod
    def trained(
        cls, images: ParquetImages, names: Sequence[str], styles: Sequence[str], extractor: Any
    ) -> "Classifier":
        """On real images, with what they show and how."""
        features, kinds = _features(extractor, _batches(images)), np.array(styles)
        (split,) = GroupShuffleSplit(1, test_size=HELD_OUT, random_state=0).split(features, kinds, names)
        mine, others = split
        accuracy = _fitted(features[mine], kinds[mine]).score(features[others], kinds[others])
        return cls(extractor, _fitted(features, kinds), float(accuracy))

    def share(self, folder: Path, styles: Sequence[str]) -> float:
        """Of the pictures of a folder of samples, those that are of their style."""
        files = [folder / one["file"] for one in json.loads((folder / "samples.json").read_text())["images"]]
        pictures = [np.array(Image.open(file).convert("RGB")) for file in files]
        batches = (
            torch.from_numpy(np.stack(pictures[i : i + 256])).permute(0, 3, 1, 2) for i in range(0, len(pictures), 256)
        )
        return float(np.mean(self.model.predict(_features(self.extractor, batches)) == np.array(styles)))


def clip(folder: Path, device: torch.device) -> Any:
    """The extractor of `eval`'s protocol clip."""
    return build_extractor(Options(protocol="clip", extractor=str(folder)), device)


def _fitted(features: NDArray[Any], kinds: NDArray[Any]) -> LogisticRegression:
    return LogisticRegression(max_iter=2000, C=10.0).fit(features, kinds)


def _batches(images: ParquetImages, at_once: int = 256) -> Any:
    for start in range(0, len(images), at_once):
        batch = images.items(range(start, min(start + at_once, len(images)))).images
        yield ((batch / 2 + 0.5) * 255).round().to(torch.uint8)


def _features(extractor: Any, batches: Any) -> NDArray[Any]:
    features = torch.cat([extractor(batch).float().cpu() for batch in batches])
    return (SCALE * torch.nn.functional.normalize(features)).numpy()


@dataclass(frozen=True)
class StyleTrial:
    """What is asked of a pipeline.

    Attributes:
        pipeline: folder, with `base` where it is a LoRA student.
        style: that it should draw when a prompt names none.
        names, others: files of prompts, those of `others` naming another style each.
        reference: real images of the style.
        clip: folder of the CLIP model.
    """

    pipeline: Path
    base: Path | None
    steps: int
    guidance: float
    style: str
    names: Path
    others: Path
    reference: Path
    clip: Path


def judged(name: str, asked: StyleTrial, out: Path, classifier: Classifier, about: dict[str, Any]) -> Record:
    """Draws the samples, measures them by `python -m eval`, and reads their style."""
    folder, started = out / name, time.monotonic()
    based = [] if asked.base is None else ["--base", str(asked.base)]
    prompts = {"names": asked.names, "others": asked.others}
    for kind, file in prompts.items():
        how = ["--steps", str(asked.steps), "--guidance", str(asked.guidance), "--batch-size", "256", "--overwrite"]
        _called(["sample.py", str(asked.pipeline), *based, "--prompts", str(file), *how, "--out", str(folder / kind)])
    report = ["--student", str(folder / "names"), "--prompts", str(asked.names), "--reference", str(asked.reference)]
    report += ["--protocol", "clip", "--extractor", str(asked.clip), "--clip", str(asked.clip), "--allow-small"]
    asked_for = {kind: file.read_text(encoding="utf-8").splitlines() for kind, file in prompts.items()}
    report += [
        "--num-images",
        str(len(asked_for["names"])),
        "--metrics",
        "fid,prdc,clip_score",
        "--out",
        str(folder / "report"),
        "--overwrite",
    ]
    _called(["-m", "eval", *report])
    shares = {
        "share": classifier.share(folder / "names", [asked.style] * len(asked_for["names"])),
        "kept_share": classifier.share(folder / "others", [style_of(line) for line in asked_for["others"]]),
    }
    (measured,) = (row for row in Report.read(folder / "report").rows if row.role == "student")
    figures = {key: figure.value for key, figure in measured.metrics.items()} | shares
    nfe = asked.steps * (2 if asked.guidance != 1 else 1)
    row = Row(steps=asked.steps, nfe=rounded(nfe), figures={key: rounded(value) for key, value in figures.items()})
    return Record(name=name, seconds=rounded(time.monotonic() - started), rows=(row,), **about)


def style_of(caption: str) -> str:
    """The style that a caption names."""
    return caption.rpartition(", ")[2]


def _called(command: list[str]) -> None:
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
