r"""Teaches an emoji model a style and measures what it draws, in steps that are commands of their own.

    python -m benchmarks.styles prepare  --out runs/styles
    python -m benchmarks.styles finetune --out runs/styles --base TEACHER --name style --steps 1000
    python -m benchmarks.styles fuse     --out runs/styles --base TEACHER --lora runs/styles/style --name teacher-style
    python -m benchmarks.styles judge    --out runs/styles --pipeline STUDENT --steps 4 --name student

The style is one that prompts do not name, as with a user's own: it is taught on names alone. The other four are asked
for by "name, style", to see whether they are kept. Distillation itself is `python train.py`, by configs/emoji.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from fastgen.data.parquet import ParquetImages

from ..record import about, commit_here
from .judge import Classifier, StyleTrial, clip, judged
from .tune import finetuned, fused

OTHERS = 2000  # captions of the other styles


def main(arguments: Sequence[str] | None = None) -> None:
    """Carries out one of the steps."""
    told = _parser().parse_args(arguments)
    {"prepare": _prepare, "finetune": _finetune, "fuse": _fuse, "judge": _judge}[told.step](told)


def _prepare(told: argparse.Namespace) -> None:
    """The style's images with their names as captions, and files of prompts."""
    told.out.mkdir(parents=True, exist_ok=True)
    table = pq.read_table(_emoji(told), columns=["image", "caption", "name", "style"])
    rows = table.select(["caption", "name", "style"]).to_pylist()
    mine = [index for index, row in enumerate(rows) if row["style"] == told.style]
    own = table.take(mine)
    pq.write_table(pa.table({"image": own["image"], "caption": own["name"]}), told.out / "style.parquet")
    others = [row["caption"] for row in rows if row["style"] != told.style]
    chosen = others[:: max(1, len(others) // OTHERS)][:OTHERS]
    for name, lines in (("names", [rows[index]["name"] for index in mine]), ("others", chosen)):
        (told.out / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _finetune(told: argparse.Namespace) -> None:
    data = ParquetImages(told.out / "style.parquet", told.size)
    how = {"batch": told.batch, "rate": told.rate, "rank": told.rank, "seed": told.seed}
    finetuned(told.base, data, told.out / told.name, steps=told.steps, device=_device(told), **how)


def _fuse(told: argparse.Namespace) -> None:
    fused(told.base, told.lora, told.out / told.name, scale=_scales(told.scale))


def _scales(told: Sequence[str]) -> float | dict[str, float]:
    """One number, or those of blocks: "down=0.5 up=1"."""
    if len(told) == 1 and "=" not in told[0]:
        return float(told[0])
    return {name: float(value) for name, _, value in (one.partition("=") for one in told)}


def _judge(told: argparse.Namespace) -> None:
    rows = pq.read_table(_emoji(told), columns=["name", "style"]).to_pylist()
    folder, device = told.assets / "extractors/emoji_clip", _device(told)
    real, names, styles = ParquetImages(_emoji(told), told.size), [r["name"] for r in rows], [r["style"] for r in rows]
    classifier = Classifier.trained(real, names, styles, clip(folder, device))
    print(f"the classifier reads {classifier.accuracy:.1%} of real images of unknown names as they are")
    out, here = told.out, about(device)
    asked = StyleTrial(
        pipeline=told.pipeline,
        base=told.base,
        steps=told.steps,
        guidance=told.guidance,
        style=told.style,
        names=out / "names.txt",
        others=out / "others.txt",
        reference=out / "style.parquet",
        clip=folder,
    )
    known = {"config": told.config, "note": told.note, "seed": told.seed, "card": here["device"], "at_once": None}
    known |= {"commit": told.commit or commit_here(), "versions": {name: here[name] for name in ("torch", "diffusers")}}
    record = judged(told.name, asked, out / "judged", classifier, known)
    record.write(out / "records" / f"{told.name}.json")
    print({key: float(value) for key, value in record.rows[0].figures.items()})


def _emoji(told: argparse.Namespace) -> Path:
    return Path(told.assets / "data/emoji/train.parquet")


def _device(told: argparse.Namespace) -> torch.device:
    return torch.device(told.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.styles", description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("prepare", "finetune", "fuse", "judge"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", help="of what the step leaves in OUT")
    parser.add_argument("--assets", type=Path, default=Path(os.environ.get("FASTGEN_ASSETS", "assets")))
    parser.add_argument("--style", default="openmoji")
    parser.add_argument("--base", type=Path, help="pipeline that is tuned, or that a LoRA lies on")
    parser.add_argument("--lora", type=Path)
    parser.add_argument("--scale", nargs="+", default=["1"], help="of the LoRA, or of its blocks: down=0.5 mid=1 up=1")
    parser.add_argument("--pipeline", type=Path, help="that is judged")
    parser.add_argument("--steps", type=int, default=4, help="updates of finetune, sampler steps of judge")
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    parser.add_argument("--commit", help="of this code, where it is no checkout")
    parser.add_argument("--config", help="that made the pipeline, under configs/")
    parser.add_argument("--note", default="")
    return parser


if __name__ == "__main__":
    sys.exit(main())
