"""What another setting of an objective leaves without effect is refused; it is taken where that has another value."""

import re
from collections.abc import Callable
from functools import partial

import pytest

from fastgen.objectives import OBJECTIVES
from fastgen.objectives.parts.anchors import Diversity, Segments
from fastgen.objectives.parts.gan import GAN
from fastgen.process import Beta, Karras
from fastgen.unread import UnreadError

LATE = Beta(2.0, 1.0)
UNREAD = [  # who, what is not read, what leaves it so, what has it read
    (GAN, {"kind": "hinge"}, {"weight": 0.0}, {"weight": 0.1}),
    (GAN, {"start": 8}, {"weight": 0.0}, {"weight": 0.1}),
    (GAN, {"approximate_r1": 1.0}, {"weight": 0.0}, {"weight": 0.1}),
    (GAN, {"times": Karras()}, {"joint": True}, {"joint": False}),
    (GAN, {"paired": "times"}, {"pixels": True}, {"pixels": False}),
    (GAN, {"paired": "times"}, {"joint": True}, {"joint": False}),
    (GAN, {"joint": True}, {"pixels": True}, {"pixels": False}),
    (GAN, {"spread": 0.5}, {"approximate_r1": 0.0}, {"approximate_r1": 1.0}),
    (Segments, {"margin": 0.1}, {"weight": 0.0}, {"weight": 0.1}),
    (Diversity, {"grid": 9}, {"weight": 0.0}, {"weight": 0.1}),
    ("decoupled_dmd", {"below_step": False}, {"augmentation": 1.0}, {"augmentation": 2.0}),
    ("decoupled_dmd", {"augmentation_times": LATE}, {"augmentation": 1.0}, {"augmentation": 2.0}),
    ("decoupled_dmd", {"floor": 1.0}, {"weight": "none"}, {"weight": "l1"}),
    ("dmd", {"distance": "lpips"}, {"regression": 0.0}, {"regression": 0.1}),
    ("dmdr", {"form": "grpo"}, {"reward": 0.0}, {"reward": 0.1}),
    ("dmdr", {"start": 8}, {"reward": 0.0}, {"reward": 0.1}),
    ("dmdr", {"group": 4}, {"form": "refl"}, {"form": "grpo"}),
    ("dmdr", {"fake_times": LATE}, {"renoise": 8}, {"renoise": 0}),
    ("freeflow", {"strength": 2.0}, {"correction": 0.0}, {"correction": 0.1}),
    ("freeflow", {"ratio": 2}, {"correction": 0.0}, {"correction": 0.1}),
    ("twinflow", {"compared": LATE}, {"matching": 0.0}, {"matching": 0.1}),
    ("ctm", {"noisy": 0.1}, {"denoising": 0.0}, {"denoising": 1.0}),
    ("add", {"times": LATE}, {"distillation": 0.0}, {"distillation": 1.0}),
    ("guidance_distillation", {"times": LATE}, {"route": 4}, {"route": 0}),
]


@pytest.mark.parametrize(("kind", "given", "off", "on"), UNREAD)
def test_it_is_refused_by_name_where_it_has_no_effect(
    kind: str | Callable[..., object], given: dict[str, object], off: dict[str, object], on: dict[str, object]
):
    make = partial(OBJECTIVES[kind] if isinstance(kind, str) else kind)
    make(**off)
    make(**given, **on)
    ((name, value),) = given.items()
    ((cause, _),) = off.items()
    with pytest.raises(UnreadError, match=rf"{name} is {re.escape(str(value))}, but .*{cause} .*would be ignored"):
        make(**given, **off)
