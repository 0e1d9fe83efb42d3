"""The distribution-matching objectives against their authors' code, by numbers of both sides on the same toy networks.

"1 / (100 d)": the official loss is summed over a sample's d values and scaled by 100, ours is their mean.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from official import VALUES, Row, check, table, theirs
from official_sides import (
    RAMP,
    SD,
    above,
    by_fake,
    by_judge,
    by_sample,
    first_phase,
    on_edm,
    on_flow,
    on_sd,
    sigmas,
    steps,
    times,
)
from torch import Tensor

from fastgen.models.state import RatioMeans
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.diff_instruct import DiffInstruct
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.distribution.sid import SiD, SiDLSG
from fastgen.objectives.distribution.sida import SHARED, FewStepSiD, SiDA
from fastgen.objectives.distribution.tdm import TDM
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.distribution.vsd import VSD, SwiftBrush
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed, LongShort, Shared
from fastgen.process import Karras, Uniform
from fastgen.proofs.page import inserted

DIVERGENCES = ("forward_kl", "jensen_shannon", "softened_reverse_kl", "neyman", "squared_hellinger", "jeffreys")


def dmd2(file: dict[str, Any]) -> DMD2:
    law = sigmas(file["sigma"])
    return DMD2(gan=GAN(times=law), times=law, fake_times=law, fake_space="edm", rollout="one_step")


def sid(file: dict[str, Any], **settings: Any) -> SiD:
    return SiD(times=sigmas(file["sigma"]), fake_times=sigmas(file["fake_sigma"]), **settings)


def shared(file: dict[str, Any]) -> GAN:
    """SiDA's term for samples of 12 values at these noise levels."""
    sigma = torch.tensor(file["fake_sigma"], dtype=torch.float64)
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    return replace(SHARED, learned=float(weight.mean()) / (2 * VALUES))


def sida(file: dict[str, Any]) -> SiDA:
    return SiDA(times=sigmas(file["sigma"]), fake_times=sigmas(file["fake_sigma"]), gan=shared(file))


def uni(file: dict[str, Any]) -> UniInstruct:
    laws = {"times": sigmas(file["sigma"]), "fake_times": sigmas(file["fake_sigma"])}
    return UniInstruct(divergence="reverse_kl", gan=shared(file), **laws)


def one_sided(file: dict[str, Any]) -> Tensor:
    """The gradient of reverse KL without that of weight |real - fake|^2, which the code leaves out."""
    square = 2 * (by_sample(on_edm(), sid(file, alpha=0.5), "sid") - by_sample(on_edm(), sid(file, alpha=1.0), "sid"))
    return by_sample(on_edm(), uni(file), "fisher") - square


def lsg(file: dict[str, Any], **settings: Any) -> SiDLSG:
    law = steps(file["steps"])
    return SiDLSG(guidance=LongShort(1.5, dropout=0.0), times=law, fake_times=law, **settings)


def few_step(file: dict[str, Any]) -> FewStepSiD:
    law, guidance = times(file["t"]), LongShort(4.5, dropout=0.0)
    laws = {"times": law, "fake_times": law, "fake_space": "flow"}
    return FewStepSiD(weight="alpha", guidance=guidance, rollout="one_step", **laws)


def diff_instruct(file: dict[str, Any]) -> DiffInstruct:
    return DiffInstruct(times=sigmas(file["sigma"]), fake_times=sigmas(file["sigma"]))


def f_distill(divergence: str, keep: float) -> Callable[[dict[str, Any]], Tensor]:
    def ours(file: dict[str, Any]) -> Tensor:
        settings = {"divergence": divergence, "keep": keep, "times": times(file["t"]), "rollout": "one_step"}
        return by_sample(on_flow(ratio_means=RatioMeans()), FDistill(**settings), "dm")

    return ours


def swiftbrush(file: dict[str, Any]) -> Tensor:
    return by_sample(on_sd(), SwiftBrush(guidance=Shared(4.5, 4.5), times=steps(file["steps"])), "dm")


def vsd(file: dict[str, Any]) -> Tensor:
    settings = {"guidance": Fixed(7.5), "times": steps(file["steps"]), "rollout": "one_step"}
    return by_sample(on_sd(), VSD(**settings), "dm")


def tdm(huber: float) -> Callable[[dict[str, Any]], Tensor]:
    def ours(file: dict[str, Any]) -> Tensor:
        t = SD.from_clock(torch.tensor(file["steps"], dtype=torch.float64))
        s = float(SD.from_clock(torch.tensor(file["landed"], dtype=torch.float64)))
        roles = on_sd(grid=(1.0, s))
        objective = TDM(huber=huber, guidance=Fixed(4.5), times=above(t, s))
        return by_sample(roles, objective, "dm", seed=first_phase(roles))

    return ours


def decoupled(file: dict[str, Any]) -> DecoupledDMD:
    law = times(file["t"])
    laws = {"times": law, "augmentation_times": law, "fake_times": law, "fake_space": "difference"}
    return DecoupledDMD(augmentation=8.0, below_step=False, rollout="one_step", **laws)


def phased(file: dict[str, Any], turn: Callable[..., Tensor], *term: str) -> Tensor:
    law = above(torch.tensor(file["t"], dtype=torch.float64), file["landed"])
    roles = on_flow(grid=(1.0, file["landed"]))
    return turn(roles, PhasedDMD(guidance=Fixed(4.0), times=law, fake_times=law), *term, seed=first_phase(roles))


SUMMED, SUM = (1 / (100 * VALUES), "1 / (100 d)"), (1 / VALUES, "1 / d")
HALVED = (1 / (50 * VALUES), "1 / (50 d)")
ROWS = [
    Row("dmd2_on_edm", "direction", "direction", 1, "1", lambda f: by_sample(on_edm(), dmd2(f), "dm")),
    Row("dmd2_on_edm", "fake", "fake score's loss", 1, "1", lambda f: by_fake(on_edm(), dmd2(f))),
    Row("dmd2_on_edm", "generator_gan", "GAN term", 3e-3, "3e-3", lambda f: by_sample(on_edm(), dmd2(f), "gan")),
    Row("dmd2_on_edm", "discriminator", "discriminator's loss", 1e-2, "1e-2", lambda f: by_judge(on_edm(), dmd2(f))),
    Row(
        "dmd2_on_sd",
        "direction",
        "direction, guidance 8",
        1,
        "1",
        lambda f: by_sample(on_sd(), DMD2(guidance=Fixed(8.0), times=steps(f["steps"]), rollout="one_step"), "dm"),
    ),
    Row(
        "dmd2_on_sd",
        "fake",
        "fake score's loss",
        1,
        "1",
        lambda f: by_fake(on_sd(), DMD2(fake_times=steps(f["steps"]), rollout="one_step")),
    ),
    *(
        Row(
            "sid",
            f"generator.{alpha}",
            f"integrand, alpha {alpha}",
            *SUMMED,
            lambda f, alpha=alpha: by_sample(on_edm(), sid(f, alpha=alpha), "sid"),
        )
        for alpha in (1.2, 1.0, 0.5)
    ),
    Row("sid", "fake", "fake score's loss", *SUM, lambda f: by_fake(on_edm(), sid(f))),
    Row("sida", "generator", "integrand", *HALVED, lambda f: by_sample(on_edm(), sida(f), "sid")),
    Row("sida", "generator_gan", "GAN term, at the same x_t", *HALVED, lambda f: by_sample(on_edm(), sida(f), "gan")),
    Row("sida", "fake", "fake score's loss", *SUM, lambda f: by_fake(on_edm(), sida(f))),
    Row("sida", "discriminator", "discriminator's loss", *SUM, lambda f: by_judge(on_edm(), sida(f))),
    *(
        Row(
            "sid_lsg",
            f"generator.{alpha}",
            f"integrand at scale 1.5, alpha {alpha}",
            *SUMMED,
            lambda f, alpha=alpha: by_sample(on_sd(), lsg(f, alpha=alpha), "sid"),
        )
        for alpha in (1.0, 1.2)
    ),
    Row("sid_lsg", "fake", "fake score's loss at scale 1.5", *SUM, lambda f: by_fake(on_sd(), lsg(f))),
    Row(
        "sid_few_step",
        "generator",
        "integrand, scale 4.5, weight alpha",
        *SUMMED,
        lambda f: by_sample(on_flow(), few_step(f), "sid"),
    ),
    Row(
        "sid_few_step",
        "generator_gan",
        "GAN term, at the same x_t",
        *SUMMED,
        lambda f: by_sample(on_flow(), few_step(f), "gan"),
    ),
    Row("sid_few_step", "fake", "fake score's loss", *SUM, lambda f: by_fake(on_flow(), few_step(f))),
    Row("sid_few_step", "discriminator", "discriminator's loss", *SUM, lambda f: by_judge(on_flow(), few_step(f))),
    Row("diff_instruct", "direction", "direction", *SUM, lambda f: by_sample(on_edm(), diff_instruct(f), "dm")),
    Row("diff_instruct", "fake", "fake score's loss", *SUM, lambda f: by_fake(on_edm(), diff_instruct(f))),
    *(
        Row(
            "f_distill",
            f"direction.{name}, {keep}",
            f"direction, {name}, {keep:g} of the old means kept",
            1,
            "1",
            f_distill(name, keep),
            tolerance=1e-5,
        )
        for keep in (0.0, 0.5)
        for name in DIVERGENCES
    ),
    Row("swiftbrush", "direction", "direction, both scores at 4.5", 1, "1", swiftbrush),
    Row("vsd", "direction", "direction, real score at 7.5", 1 / (3 * VALUES), "1 / (B d)", vsd),
    Row("tdm", "direction.0.0", "direction above a segment's end", 0.5, "1/2", tdm(0.0)),
    Row("tdm", "direction.0.001", "the same, Huber 0.001", 1, "1", tdm(1e-3)),
    Row(
        "decoupled_dmd",
        "direction",
        "matching",
        0.5,
        "1/2",
        lambda f: by_sample(on_flow(), decoupled(f), "dm"),
        tolerance=1e-7,
    ),
    Row(
        "decoupled_dmd",
        "augmentation",
        "augmentation, weight 7",
        0.5,
        "1/2",
        lambda f: by_sample(on_flow(), decoupled(f), "augmentation"),
        tolerance=1e-7,
    ),
    Row("decoupled_dmd", "fake", "fake score's loss", 1, "1", lambda f: by_fake(on_flow(), decoupled(f))),
    Row("phased_dmd", "direction", "direction above a phase's end", 1, "1", lambda f: phased(f, by_sample, "dm")),
    Row("phased_dmd", "fake", "fake score's loss above it", 1, "1", lambda f: phased(f, by_fake)),
    Row(
        "uni_instruct",
        "generator",
        "integrand of reverse KL, less weight x (real - fake)^2",
        2 / (100 * VALUES),
        "2 / (100 d)",
        one_sided,
    ),
    Row(
        "uni_instruct",
        "generator_gan",
        "GAN term, at the same x_t",
        *SUMMED,
        lambda f: by_sample(on_edm(), uni(f), "gan"),
    ),
    Row("uni_instruct", "fake", "fake score's loss", *SUM, lambda f: by_fake(on_edm(), uni(f))),
    Row("uni_instruct", "discriminator", "discriminator's loss", *SUM, lambda f: by_judge(on_edm(), uni(f))),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_our_side_is_the_factor_times_the_official_one(row: Row):
    check(row)


def test_sidas_weight_of_the_discriminator_is_that_of_its_images():
    """E[lambda] / (2 d) with lambda = 4 + 1 / sigma^2, log sigma ~ N(-1.2, 1.2^2) and d = 3 x 32 x 32."""
    assert SHARED.learned == pytest.approx((4 + math.exp(2.4 + 2 * 1.2**2)) / (2 * 3 * 32 * 32), rel=1e-3)


@pytest.mark.parametrize("law", [Uniform(0.02, 0.98), Karras(0.02, 0.98)], ids=["edm's own", "karras"])
def test_looks_on_edm_reach_as_far_as_dmd2s(law: Uniform | Karras):
    """Steps 20 to 980 of its ramp of 1000; ours are shares of the ramp, 0.02 to 0.98."""
    low, high = theirs("dmd2_on_edm")["ends"]
    sigma = RAMP.sigma(law.sample(RAMP, 20000, torch.Generator().manual_seed(0)))
    assert float(sigma.min()) == pytest.approx(low, rel=5e-3)
    assert float(sigma.max()) == pytest.approx(high, rel=1e-2)


def test_the_page_has_the_table():
    page = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()
    assert inserted(page, "official-matching", table(ROWS)) == page, (
        "put it there: python tests/objectives/test_official_matching.py"
    )


if __name__ == "__main__":
    place = Path(__file__).parents[2] / "docs" / "objectives.md"
    place.write_text(inserted(place.read_text(), "official-matching", table(ROWS)))
