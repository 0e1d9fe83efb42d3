"""Which of many parameters are among the fast tests; the slow ones take them all."""

from collections.abc import Iterable

import pytest

FORMS = ("ddpm", "consistency", "dit", "stable_diffusion", "sdxl", "sd3", "flux", "sana_sprint", "z_image", "hidream")
FORMS += ("lumina2", "wan_of_two", "cogvideox")
"""Families of which each is called in a way of its own: by nothing, by classes, by text, with sizes, with pooled texts,
packed, transformed, in lists, by several encoders, with time reversed, as two networks, as video. The others repeat
one of these on another network."""


def some(names: Iterable[str], *quick: str) -> list[object]:
    """All of them as parameters, those that are not `quick` marked slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]
