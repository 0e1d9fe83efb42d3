r"""Trains a second CLIP model of captioned emoji from scratch, to judge students that the first one rewarded.

    python -m benchmarks.judge --assets ASSETS --out runs/trials/shared/judge --seconds 100

It has another width, other patches and another seed than `ASSETS/extractors/emoji_clip`, whose tokenizer and image
processor it shares, so that its errors are its own. OUT is a folder for `python -m eval --clip OUT`, and has in
judge.json what the model reads of the pairs that were kept from its training: how often a picture's own caption is
nearest to it among a hundred, and the other way, and its score of pairs that belong together and of those that do not.
"""

import argparse
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from eval.networks.clip import Clip
from fastgen.data.parquet import ParquetImages
from fastgen.files import atomic_folder

from .record import about, written

HELD_OUT = 0.1  # share of the pairs
CANDIDATES = 100  # among which a pair is looked for
WARMUP = 0.05  # share of the training
LARGEST_SCALE = 100.0  # of the cosines, as in CLIP


@dataclass(frozen=True, eq=False)
class Pairs:
    """Images [N, 3, H, W] in [-1, 1], their captions, and the captions' tokens [N, L]."""

    images: Tensor
    captions: Sequence[str]
    tokens: Tensor

    @classmethod
    def read(cls, assets: Path, size: int, device: torch.device) -> "Pairs":
        """All emoji, on the device."""
        source = ParquetImages(assets / "data/emoji/train.parquet", size)
        tokenizer = AutoTokenizer.from_pretrained(_first(assets), local_files_only=True)
        captions = source.prompts or ()
        tokens = tokenizer(list(captions), padding=True, return_tensors="pt")["input_ids"]
        return cls(source.items(range(len(source))).images.to(device), captions, tokens.to(device))

    def some(self, rows: Tensor) -> "Pairs":
        """Those of these rows."""
        at = rows.to(self.images.device)
        captions = [self.captions[row] for row in rows.tolist()]
        return Pairs(self.images[at], captions, self.tokens[at])

    def split(self, share: float, rng: torch.Generator) -> tuple["Pairs", "Pairs"]:
        """This share of them by lot, and the others."""
        order = torch.randperm(len(self.captions), generator=rng)
        count = round(share * len(order))
        return self.some(order[:count]), self.some(order[count:])


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Trains the model, writes its folder, and prints what it reads of the pairs it was not trained on."""
    told = _parser().parse_args(arguments)
    device = torch.device(told.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    torch.manual_seed(told.seed)
    config = configured(CLIPConfig.from_pretrained(_first(told.assets)), width=told.width, patch=told.patch)
    rng = torch.Generator().manual_seed(told.seed)
    kept, pairs = Pairs.read(told.assets, config.vision_config.image_size, device).split(HELD_OUT, rng)
    model = CLIPModel(config).to(device)
    updates = trained(model, pairs, kept, rng, batch=told.batch, rate=told.rate, seconds=told.seconds)
    with atomic_folder(told.out, replace=True) as folder:
        model.save_pretrained(folder)
        for file in _first(told.assets).iterdir():
            if not (folder / file.name).exists() and file.suffix in (".json", ".txt"):  # tokenizer and image processor
                shutil.copyfile(file, folder / file.name)
        found = {
            "machine": about(device, seed=told.seed),
            "setting": {name: getattr(told, name) for name in ("seconds", "batch", "rate", "width", "patch")},
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "updates": updates,
            "pairs": {"trained": len(pairs.captions), "held_out": len(kept.captions)},
            "held_out": read_of(Clip(folder, device=device), kept),
        }
        return written(found, folder / "judge.json")


def configured(first: CLIPConfig, *, width: int, patch: int) -> CLIPConfig:
    """The first model's settings with another width of both towers, and other patches."""
    size = {"hidden_size": width, "intermediate_size": 4 * width}
    text = {**first.text_config.to_dict(), **size}
    vision = {**first.vision_config.to_dict(), **size, "patch_size": patch}
    return CLIPConfig(text_config=text, vision_config=vision, projection_dim=first.projection_dim)


def trained(
    model: Any, pairs: Pairs, kept: Pairs, rng: torch.Generator, *, batch: int, rate: float, seconds: float
) -> int:
    """Trains by the contrastive loss for so many seconds, one update at least; their number.

    The rate rises over the first `WARMUP` of the time and falls to zero along a cosine over the whole.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.1)
    device, started, updates, told = pairs.images.device, time.monotonic(), 0, 0.0
    while (done := (time.monotonic() - started) / seconds) < 1 or not updates:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, done / WARMUP) * (1 + math.cos(math.pi * min(done, 1.0))) / 2
        some = pairs.some(torch.randint(len(pairs.captions), (batch,), generator=rng))
        images = augmented(some.images)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            seen = model.get_image_features(images).pooler_output
            asked = model.get_text_features(some.tokens).pooler_output
        loss = contrastive(seen.float(), asked.float(), model.logit_scale.exp().clamp(max=LARGEST_SCALE))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        updates += 1
        if done >= told:
            print(f"{done:4.0%}, {updates} updates: loss {loss.item():.3f}, {_on_the_way(model, kept)}", flush=True)
            told += 0.1
    return updates


def contrastive(seen: Tensor, asked: Tensor, scale: Tensor) -> Tensor:
    """Mean cross-entropy of finding each image's text and each text's image (Radford et al. 2021, arXiv:2103.00020).

    Args:
        seen, asked: embeddings [B, e] of images and of their texts.
        scale: of the cosines.
    """
    cosines = F.normalize(seen, dim=-1) @ F.normalize(asked, dim=-1).T
    own = torch.arange(len(seen), device=seen.device)
    return (F.cross_entropy(scale * cosines, own) + F.cross_entropy(scale * cosines.T, own)) / 2


def augmented(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] in [-1, 1], each mirrored or not, cropped or shrunk, and in other light; hues stay.

    Captions name colours, and few of them a side.
    """

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(len(images), 1, 1, 1, device=images.device).uniform_(low, high)

    zoom, mirror = uniform(0.75, 1.1), uniform(-1, 1).sign()
    place = torch.zeros(len(images), 2, 3, device=images.device)
    place[:, 0, 0], place[:, 1, 1] = (zoom * mirror).flatten(), zoom.flatten()
    place[:, 0, 2], place[:, 1, 2] = uniform(-0.15, 0.15).flatten(), uniform(-0.15, 0.15).flatten()
    grid = F.affine_grid(place, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    grey = moved.mean(dim=1, keepdim=True)
    coloured = grey + uniform(0.7, 1.3) * (moved - grey)
    level = coloured.mean(dim=(1, 2, 3), keepdim=True)
    return (level + uniform(0.7, 1.3) * (coloured - level) + uniform(-0.2, 0.2)).clamp(-1, 1)


@torch.no_grad()
def _on_the_way(model: Any, kept: Pairs) -> str:
    model.eval()
    seen = model.get_image_features(kept.images).pooler_output
    asked = model.get_text_features(kept.tokens).pooler_output
    model.train()
    return ", ".join(f"{name} {value:.1%}" for name, value in retrieved(seen, asked).items())


def read_of(clip: Clip, kept: Pairs) -> dict[str, float]:
    """Retrieval and scores of a saved model, by the code that evaluates with it."""
    seen = clip(((kept.images + 1) * 127.5).round().to(torch.uint8))
    own, others = (100 * clip.alignment(seen, texts).mean() for texts in (kept.captions, _next(kept.captions)))
    found = retrieved(seen, clip.text(kept.captions))
    return {**found, "clip_score": own.item(), "clip_score_of_other_captions": others.item()}


def retrieved(seen: Tensor, asked: Tensor) -> dict[str, float]:
    """Share of images whose own text is the nearest among those of `CANDIDATES` pairs, and the other way.

    Args:
        seen, asked: embeddings [N, e] of images and of their texts; those of the last, smaller group are left out.
    """
    whole = max(len(seen) - len(seen) % CANDIDATES, min(len(seen), CANDIDATES))
    groups = zip(seen[:whole].split(CANDIDATES), asked[:whole].split(CANDIDATES), strict=True)
    cosines = [F.normalize(one, dim=-1) @ F.normalize(other, dim=-1).T for one, other in groups]
    own = torch.arange(len(cosines[0]), device=seen.device)
    to_text, to_image = (
        torch.cat([each.argmax(dim) == own for each in cosines]).float().mean().item() for dim in (1, 0)
    )
    return {"image_to_text": to_text, "text_to_image": to_image}


def _next(captions: Sequence[str]) -> list[str]:
    return [*captions[1:], captions[0]]


def _first(assets: Path) -> Path:
    return Path(assets / "extractors/emoji_clip")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.judge", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--assets", type=Path, default=Path(os.environ.get("FASTGEN_ASSETS", "assets")))
    parser.add_argument("--seconds", type=float, default=100.0, help="of training; reading and saving take some more")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rate", type=float, default=5e-4)
    parser.add_argument("--width", type=int, default=256, help="of both towers")
    parser.add_argument("--patch", type=int, default=4, help="side in pixels")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device")
    return parser


if __name__ == "__main__":
    main()
