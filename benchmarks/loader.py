r"""Images per second of the loader from a folder, tar shards and parquet files, and how long a step waits for them.

    python -m benchmarks.loader --images 100000 --workers 0 2 --out results/loader.json

JPEGs of one side are made in a temporary folder, 1,000 different ones over and over, and read in a shuffled order for
some seconds: as fast as they come, then by a consumer that sleeps for `--step` seconds after each batch, as a host does
whose device computes. What it waits for a batch is then what a step waits. Decoded images are not kept in memory.
"""

import argparse
import io
import os
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as parquet
import torch
from PIL import Image

from fastgen.data import ImageFolder, Loader, ParquetImages, WebDataset
from fastgen.data.images import ImageSource

from .record import about, written

DIFFERENT, IN_A_FILE = 1_000, 10_000  # images
KINDS: dict[str, type[ImageSource]] = {"folder": ImageFolder, "tar": WebDataset, "parquet": ParquetImages}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Makes the images, measures, prints and, where asked to, writes the figures."""
    told = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, Any] = {
        "benchmark": "loader",
        "machine": {**about(device), "cores": len(psutil.Process().cpu_affinity())},
        "setting": {name: getattr(told, name) for name in ("images", "side", "batch", "step", "measured")},
        "figures": {},
    }
    with TemporaryDirectory(dir=told.folder) as folder:
        os.environ["FASTGEN_CACHE"] = f"{folder}/kept"
        start = time.perf_counter()
        _made(Path(folder), told.images, told.side)
        found["seconds_to_make"] = time.perf_counter() - start
        for kind, source in KINDS.items():
            for workers in told.workers:
                read = source(Path(folder) / kind, told.side, cache_gib=0)
                figures = _measured(read, workers, told, device)
                print(kind, workers, figures, flush=True)
                found["figures"].setdefault(kind, {})[f"workers_{workers}"] = figures
    return written(found, told.out)


def _measured(source: ImageSource, workers: int, told: argparse.Namespace, device: torch.device) -> dict[str, float]:
    begin = time.perf_counter()
    loader = Loader(source, seed=0, batch=told.batch, flip=True, workers=workers, device=device)
    loader.take(0, told.batch)
    first = time.perf_counter() - begin
    batches, taken, seconds = _taken(loader, 1, told, pause=0.0)
    paced, _, stepping = _taken(loader, 1 + batches, told, pause=told.step)
    return {
        "images_per_second": told.batch * batches / seconds,
        "seconds_to_first_batch": first,
        "waited_of_a_step": stepping / paced - told.step,
        "waited_without_a_step": taken / batches,
    }


def _taken(loader: Loader, first: int, told: argparse.Namespace, *, pause: float) -> tuple[int, float, float]:
    """Batches of `told.measured` seconds, seconds waited for them, and seconds in all."""
    before, start, batches = loader.waited, time.perf_counter(), 0
    while time.perf_counter() - start < told.measured:
        loader.take((first + batches) * told.batch, told.batch)
        time.sleep(pause)
        batches += 1
    return batches, loader.waited - before, time.perf_counter() - start


def _made(folder: Path, count: int, side: int) -> None:
    """The same images in every kind of storage."""
    contents = [_jpeg(number, side) for number in range(min(DIFFERENT, count))]
    for kind in KINDS:
        (folder / kind).mkdir()
    for first in range(0, count, IN_A_FILE):
        numbers = range(first, min(first + IN_A_FILE, count))
        held = [contents[number % len(contents)] for number in numbers]
        with tarfile.open(folder / "tar" / f"{first:08d}.tar", "w") as shard:
            for number, content in zip(numbers, held, strict=True):
                (folder / "folder" / f"{number:08d}.jpg").write_bytes(content)
                member = tarfile.TarInfo(f"{number:08d}.jpg")
                member.size = len(content)
                shard.addfile(member, io.BytesIO(content))
        parquet.write_table(pa.table({"image": pa.array(held)}), folder / "parquet" / f"{first:08d}.parquet")


def _jpeg(number: int, side: int) -> bytes:
    """Blotches with grain, of about the size of a photograph's file."""
    drawn = np.random.default_rng(number)
    coarse = Image.fromarray(drawn.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), np.float32)
    grained = pixels + drawn.normal(scale=8, size=pixels.shape)
    content = io.BytesIO()
    Image.fromarray(grained.clip(0, 255).astype(np.uint8)).save(content, "jpeg", quality=85)
    return content.getvalue()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--side", type=int, default=256, help="of the images in pixels")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="counts of processes that are tried")
    parser.add_argument("--step", type=float, default=0.1, help="seconds of a stand-in for a training step")
    parser.add_argument("--measured", type=float, default=5.0, help="seconds that each figure is measured for")
    parser.add_argument("--folder", type=Path, help="where the images are made (default: the temporary folder)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


if __name__ == "__main__":
    main()
