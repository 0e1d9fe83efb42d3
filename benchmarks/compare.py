r"""A gate against regressions: the figures of two files of one benchmark on one card, old and new.

    python -m benchmarks.compare old.json new.json --slower 0.05

A figure is worse where its ratio is beyond the given share and beyond twice the noise of both sides' repeats. The exit
code is 1 if one is worse, and 2 if the two cannot be compared.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .figures import Result, higher_is_better

SAME = ("card", "device")


@dataclass(frozen=True)
class Change:
    """A figure's new value over its old one, turned so that more than 1 is worse, and the noise of that ratio."""

    name: str
    old: float
    new: float
    ratio: float
    noise: float

    def worse(self, share: float) -> bool:
        """Beyond the share and beyond the noise."""
        return self.ratio - 1 > max(share, 2 * self.noise)


def changes(old: Result, new: Result) -> list[Change]:
    """Of the figures that both have.

    Raises:
        ValueError: they are of different benchmarks, settings or cards, or have no figure in common.
    """
    if old.benchmark != new.benchmark or old.setting != new.setting:
        differing = {name for name in old.setting | new.setting if old.setting.get(name) != new.setting.get(name)}
        raise ValueError(
            f"{old.name} and {new.name} measure different things: {sorted(differing) or 'benchmarks'} differ"
        )
    for name in SAME:
        if old.machine.get(name) != new.machine.get(name):
            raise ValueError(
                f"{old.name} is of {old.machine.get(name)} and {new.name} of {new.machine.get(name)}: measure both on "
                "one card"
            )
    common = [name for name, figure in old.figures.items() if name in new.figures and figure.value > 0]
    if not common:
        raise ValueError(f"{old.name} and {new.name} have no figure in common")
    return [_change(name, old, new) for name in common]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the ratios; 1 where a figure is worse, 2 where they cannot be compared."""
    told = _parser().parse_args(arguments)
    try:
        found = changes(Result.read(told.old), Result.read(told.new))
    except (ValueError, OSError) as error:
        print(f"cannot compare: {error}", file=sys.stderr)
        return 2
    width = max(len(change.name) for change in found)
    for change in found:
        verdict = "worse" if change.worse(told.slower) else ""
        ratio = f"{change.ratio:6.3f} +- {2 * change.noise:.3f}"
        print(f"{change.name:<{width}}  {change.old:12.5g} {change.new:12.5g}  {ratio}  {verdict}".rstrip())
    worse = sum(change.worse(told.slower) for change in found)
    print(f"{worse} of {len(found)} figures are worse by more than {told.slower:.0%}")
    return 1 if worse else 0


def _change(name: str, old: Result, new: Result) -> Change:
    before, after = old.figures[name], new.figures[name]
    ratio = after.value / before.value
    if higher_is_better(name):
        ratio = math.inf if ratio == 0 else 1 / ratio
    return Change(name, before.value, after.value, ratio, math.hypot(before.noise, after.noise))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__.splitlines()[0])
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--slower", type=float, default=0.05, metavar="SHARE", help="that is let pass (default: 0.05)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
