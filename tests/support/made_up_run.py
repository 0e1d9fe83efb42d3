"""The folder of a made-up run of two stages: its logs, its pictures and what it says of itself."""

import json
import math
import os
import platform
from pathlib import Path

from PIL import Image

COUNT, SIZE, GAP = 4, 16, 2


def write_run(folder: Path, *, cycles: int = 40, words: str = "", finished: bool = False) -> Path:
    """Writes it; `words` end every text in it."""
    folder.mkdir(parents=True, exist_ok=True)
    header = {
        "teacher": f"runs/teacher/pipeline, ConsistencyModelPipeline, 0.3 M parameters{words}",
        "student": f"{folder.name}/student, 1 step, renoise{words}",
        "device": f"cpu{words}",
        "memory": f"planned 0.012 GiB of 64 GiB, and activations besides{words}",
        "stage 1/2": f"kd: 800 images in 20 cycles of 40{words}",
        "stage 2/2": f"dmd2: 800 images in 20 cycles of 40{words}",
    }
    about = {"header": header, "started": "2026-11-01 10:00:00+00:00", "finished": None}
    if finished:
        about |= {"finished": "2026-11-01 10:05:00+00:00", "closing": {"student": f"out/student{words}"}}
        about |= {"next": [f"fastgen sample out/student{words}"]}
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "config.yaml").write_text("out: here\n")
    log, pace = [], []
    for index in range(cycles):
        stage, cycle = divmod(index, 20)
        at = {"stage": stage, "cycle": cycle + 1, "images": 40 * (cycle + 1)}
        figures = {"generator/dm": math.exp(-index / 10), "generator/grad": 1 + math.sin(index), "generator/lr": 1e-3}
        figures |= {"fake_score/eps": 0.5, "fake_score/grad": 2.0} if stage else {}
        figures |= {"quality/frechet": 3 / (1 + index), "quality/recall": 0.5} if index % 5 == 0 else {}
        log.append({**at, **figures} | ({"note": f"a note{words}"} if index == 30 else {}))
        pace.append({**at, "time": 1e9, "pace/images_per_second": 40.0 + index, "memory/gib": 1.5})
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log))
    (folder / "pace.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in pace))
    write_preview(folder, "teacher", what=f"teacher, 25 steps{words}", words=words)
    write_preview(folder, "0-kd-000000800", what=f"student, 1 step{words}", words=words, stage="kd", images=800)
    write_preview(folder, "1-dmd2-000000400", what=f"student, 1 step{words}", words=words, stage="dmd2", images=400)
    return folder


def write_preview(folder: Path, name: str, *, what: str, words: str = "", **where: object) -> None:
    """A grid of four pictures, and its record."""
    (folder / "previews").mkdir(exist_ok=True)
    columns = 2
    grid = Image.new("RGB", (GAP + columns * (SIZE + GAP), GAP + columns * (SIZE + GAP)), "white")
    for place in range(COUNT):
        at = (GAP + place % columns * (SIZE + GAP), GAP + place // columns * (SIZE + GAP))
        grid.paste(Image.new("RGB", (SIZE, SIZE), colour(place)), at)
    grid.save(folder / "previews" / f"{name}.png")
    record = {"what": what, "columns": columns, "width": SIZE, "height": SIZE, "seeds": list(range(COUNT))}
    record |= {"captions": [f"class {place}{words}" for place in range(COUNT)], "beliefs": None, **where}
    record |= {"health": {"std": 0.5, "spread": 0.4, "saturated": 0.1}}
    (folder / "previews" / f"{name}.json").write_text(json.dumps(record))


def colour(place: int) -> tuple[int, int, int]:
    """Of a picture."""
    return (60 * place, 255 - 60 * place, 128)


def hold(folder: Path, *, pid: int | None = None, host: str | None = None) -> None:
    """Writes a lock that names a process; whether that one has it open is another thing."""
    holder = {"pid": pid or os.getpid(), "host": host or platform.node(), "since": "2026-11-01 10:00:00+00:00"}
    (folder / ".lock").write_text(json.dumps(holder))
