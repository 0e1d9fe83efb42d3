"""What a stage's roles may start from, by name."""

from collections.abc import Mapping, Sequence

from ..errors import did_you_mean

ORIGINS = ("teacher", "generator", "ema", "fake_score")
"""Besides an earlier stage: the teacher, and what the stage before leaves."""


def check_carried(name: str, carry: Mapping[str, str], earlier: Sequence[str]) -> None:
    """Refuses a stage that is called as another is or what it cannot be, or starts from what is not there.

    Args:
        name: name of the stage.
        carry: role -> origin.
        earlier: names of the stages before it.

    Raises:
        ValueError: naming the stage and what there is.
    """
    if name in earlier:
        raise ValueError(f"two stages are called {name!r}: give each a `name` of its own")
    if name in ORIGINS:
        raise ValueError(f"a stage is called {name!r}, which `carry` means otherwise: give it another `name`")
    known = (*ORIGINS, *earlier)
    for role, origin in carry.items():
        if origin not in known:
            hint = did_you_mean(origin, known, otherwise=f"choose of {', '.join(known)}")
            raise ValueError(f"stage {name!r} carries {role} from {origin!r}, which is no earlier stage: {hint}")
