"""What a pipeline's own checkers said of a row's images, in words."""

from ..rows import Row


def in_words(row: Row, *, skipped: bool) -> str:
    """How many images were blackened, by what, and whether they count in the figures."""
    names = sorted({name for one in row.flagged for name in one.flags})
    fate = (
        "they are left out of the figures" if skipped else "they count in the figures; --skip-flagged leaves them out"
    )
    return (
        f"{row.title}: the pipeline's own checker blackened {len(row.flagged):,} images ({', '.join(names)}); {fate}."
    )


def flags_of(row: Row | None, image: int) -> str:
    """The flags of one image in words, "" for none."""
    flagged = () if row is None else row.flagged
    return ", ".join(name for one in flagged if one.image == image for name in one.flags)
