"""Curves of runs as an SVG that is the same wherever it is written: a panel for each run, the others grey behind it."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from benchmarks.trials.record import Record

WIDTH, HEIGHT, GAP, LEFT, TOP = 190, 120, 16, 34, 22
COLUMNS = 5
TICKS = (0.5, 1, 2, 5, 10, 20, 50, 100)


def drawn(records: Sequence[Record]) -> str:
    """Frechet distance on a logarithmic axis against seconds of training, of the records that have a course."""
    found = [record for record in records if len(record.curve) > 1]
    values = [float(point.fid) for record in found for point in record.curve if point.fid > 0]
    longest = max(float(point.seconds) for record in found for point in record.curve)
    low, high = math.log(min(values) * 0.9), math.log(max(values) * 1.1)

    def place(seconds: float, fid: float) -> str:
        x = WIDTH * seconds / longest
        y = HEIGHT * (high - math.log(fid)) / (high - low)
        return f"{x:.1f},{y:.1f}"

    def line(record: Record, style: str) -> str:
        points = " ".join(place(float(point.seconds), float(point.fid)) for point in record.curve if point.fid > 0)
        return f'<polyline points="{points}" fill="none" {style}/>'

    ticks = [tick for tick in TICKS if low <= math.log(tick) <= high]
    levels = {tick: HEIGHT * (high - math.log(tick)) / (high - low) for tick in ticks}
    grid = [f'<line x1="0" x2="{WIDTH}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eee"/>' for y in levels.values()]
    scale = [f'<text x="-4" y="{y + 3:.1f}" text-anchor="end">{tick:g}</text>' for tick, y in levels.items()]
    behind = [line(record, 'stroke="#ccc" stroke-width="0.7"') for record in found]
    rows = math.ceil(len(found) / COLUMNS)
    size = f"{LEFT + COLUMNS * (WIDTH + GAP + LEFT)} {TOP + rows * (HEIGHT + GAP + TOP)}"
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="9">']
    parts += ['<rect width="100%" height="100%" fill="white"/>']
    parts += ['<defs><g id="behind">', *grid, *scale, *behind, "</g></defs>"]
    for index, record in enumerate(found):
        x = LEFT + (index % COLUMNS) * (WIDTH + GAP + LEFT)
        y = TOP + (index // COLUMNS) * (HEIGHT + GAP + TOP)
        last = record.curve[-1]
        parts += [f'<g transform="translate({x},{y})"><use href="#behind"/>']
        parts += [f'<text x="0" y="-6" font-weight="bold">{escape(record.name)}</text>']
        parts += [f'<text x="{WIDTH}" y="-6" text-anchor="end">{last.fid} after {last.seconds} s</text>']
        parts += [line(record, 'stroke="#4269d0" stroke-width="1.6"'), "</g>"]
    return "\n".join([*parts, "</svg>"]) + "\n"
