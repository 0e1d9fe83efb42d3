r"""A table in Markdown of benchmarks' JSON files, one for each benchmark, and a plot of one figure.

python -m benchmarks.table results/*.json
python -m benchmarks.table results/*.json --plot step.png --figure images_per_second
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from .figures import Result

MOST = 8  # figures of a row
ROW, LABEL, BAR = 26, 300, 420  # pixels of a plot


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the tables and draws the plot."""
    told = _parser().parse_args(arguments)
    results = [Result.read(file) for file in told.files]
    print("\n".join(tables(results, told.columns)))
    if told.plot:
        plot(
            {one.name: one.figures[told.figure].value for one in results if told.figure in one.figures}, told.figure
        ).save(told.plot)


def tables(results: Sequence[Result], columns: Sequence[str] = ()) -> Iterator[str]:
    """Lines of Markdown: a heading, where the rows are from, and a table for each benchmark."""
    kinds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        kinds[result.benchmark].append(result)
    for kind, rows in kinds.items():
        yield from _table(kind, rows, columns)


def plot(values: dict[str, float], figure: str) -> Image.Image:
    """A bar for each value.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError(f"no file has the figure {figure}: name one of the table's columns")
    picture = Image.new("RGB", (LABEL + BAR + 90, ROW * (len(values) + 2)), "white")
    draw, most = ImageDraw.Draw(picture), max(values.values())
    draw.text((8, 6), figure, fill="black")
    for place, (name, value) in enumerate(values.items(), 1):
        top, length = ROW * place + 4, BAR * value / most
        draw.text((8, top + 3), name[:48], fill="black")
        draw.rectangle((LABEL, top, LABEL + length, top + ROW - 8), fill="#4269d0")
        draw.text((LABEL + length + 6, top + 3), f"{value:.4g}", fill="black")
    return picture


def _table(kind: str, rows: Sequence[Result], wanted: Sequence[str]) -> Iterator[str]:
    common = list(dict.fromkeys(name for row in rows for name in row.figures))
    columns = [name for name in common if not wanted or name in wanted][: len(wanted) or MOST]
    places = dict.fromkeys(
        f"{row.machine.get('device')}, torch {row.machine.get('torch')}, Diffusers {row.machine.get('diffusers')}, "
        f"commit {row.machine.get('commit', 'unknown')}"
        for row in rows
    )
    yield from (f"### {kind}", "", *(f"{place}." for place in places), "")
    yield f"| {' | '.join(['what', *columns])} |"
    yield f"|{'---|' * (len(columns) + 1)}"
    for row in rows:
        yield f"| {' | '.join([_told(row, rows), *(_cell(row, name) for name in columns)])} |"
    yield ""


def _told(row: Result, rows: Sequence[Result]) -> str:
    """The settings in which a row differs from others, or the name of its file."""
    differing = {
        name: value for name, value in row.setting.items() if len({str(r.setting.get(name)) for r in rows}) > 1
    }
    return ", ".join(f"{name} {value}" for name, value in differing.items()) or row.name


def _cell(row: Result, name: str) -> str:
    found = row.figures.get(name)
    return "" if found is None else f"{found.value:.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--columns", nargs="+", default=(), metavar="FIGURE", help="(default: the first eight)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png")
    parser.add_argument("--figure", default="images_per_second", help="that the plot shows")
    return parser


if __name__ == "__main__":
    main()
