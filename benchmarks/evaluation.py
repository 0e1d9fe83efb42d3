r"""Images per second of an evaluation and of its stages, on made-up images and a stand-in network of real size.

    python -m benchmarks.evaluation --images 20000 --side 32 --out results/evaluation.json

Stages: files are decoded, a network sees them, features become moments, and two of these a Frechet distance; then the
command itself, `python -m eval`, on the same files.
"""

import argparse
import io
import time
import zipfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import ResNetConfig, ResNetModel

from eval.evaluate import evaluate
from eval.images.decode import Reading, image_batches
from eval.images.sets import open_images
from eval.measures.frechet import Moments, Target
from eval.networks.extractors import TransformersExtractor
from eval.networks.preprocessing import Resize
from eval.options import Options

from .record import about, written
from .watches import synchronise

GREY = (0.5, 0.5, 0.5)
WIDTHS = {"resnet50": ([256, 512, 1024, 2048], [3, 4, 6, 3], 64), "tiny": ([8, 16], [1, 1], 4)}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measures, prints and, where asked to, writes the figures."""
    told = _parser().parse_args(arguments)
    device = torch.device("cuda" if told.device == "auto" and torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
        "benchmark": "evaluation",
        "machine": about(device, seed=0),
        "setting": {
            name: getattr(told, name) for name in ("images", "side", "network", "network_side", "batch", "workers")
        },
    }
    with TemporaryDirectory() as folder:
        place = Path(folder)
        _images(place / "images.zip", told.images, told.side)
        _network(place / "network", told.network)
        found["images_per_second"], found["seconds"] = _stages(told, place, device)
        found["images_per_second"]["eval"] = told.images / _command(told, place, device)
    return written(found, told.out)


def _stages(told: argparse.Namespace, place: Path, device: torch.device) -> tuple[dict[str, float], dict[str, float]]:
    precision = "tf32" if told.fast else "float32"
    way = Resize(told.network_side, GREY, GREY)
    extractor = TransformersExtractor(place / "network", way.preprocess, device=device, precision=precision)
    reading = Reading(batch_size=told.batch, workers=told.workers)
    start = time.perf_counter()
    batches = [batch.images for batch in image_batches(open_images(place / "images.zip"), reading)]
    decoded = time.perf_counter()
    seen = [extractor(images) for images in batches]
    synchronise(device)
    looked = time.perf_counter()
    features = torch.cat(seen)
    statistics = Moments.of(features).statistics("stand-in")
    synchronise(device)
    summed = time.perf_counter()
    distance = Target.of(statistics).distance(statistics)
    assert abs(distance) < 1e-3 * float(statistics.cov.trace()), distance
    compared = time.perf_counter()
    spent = {"decode": decoded - start, "network": looked - decoded, "moments": summed - looked}
    return {name: told.images / took for name, took in spent.items()}, {"frechet": compared - summed}


def _command(told: argparse.Namespace, place: Path, device: torch.device) -> float:
    """Seconds of the evaluation of a set of images against themselves: each is decoded and seen twice."""
    options = Options(
        reference=place / "images.zip",
        student=str(place / "images.zip"),
        extractor=str(place / "network"),
        extractor_size=told.network_side,
        extractor_range=(-1.0, 1.0),
        metrics=("fid",),
        num=told.images,
        batch_size=told.batch,
        workers=told.workers,
        device=str(device),
        fast=told.fast,
        allow_small=True,
        out=place / "report",
    )
    start = time.perf_counter()
    with redirect_stdout(io.StringIO()):
        evaluate(options)
    return (time.perf_counter() - start) / 2


def _images(file: Path, count: int, side: int) -> None:
    """PNG files of noise that a compressor finds something in."""
    drawn = np.random.default_rng(0)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for number in range(count):
            coarse = Image.fromarray(drawn.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            content = io.BytesIO()
            coarse.resize((side, side), Image.Resampling.BICUBIC).save(content, "png")
            archive.writestr(f"{number:06d}.png", content.getvalue())


def _network(folder: Path, kind: str) -> None:
    sizes, depths, embedding = WIDTHS[kind]
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=embedding, hidden_sizes=sizes, depths=depths)).save_pretrained(folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=32, help="of the images in pixels")
    parser.add_argument("--network", choices=WIDTHS, default="resnet50")
    parser.add_argument("--network-side", type=int, default=224, help="that the network sees them at")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--fast", action="store_true", help="TF32")
    parser.add_argument("--device", choices=("auto", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    main()
