"""Objectives that are listed apart are apart: each pair's generator gradients point to different directions.

The fixture is a conditional mixture, a two-step grid and an affine generator off the data whose law the fake score and
the ratio know exactly. All look at the same times, so that what differs is what the papers differ in.
"""

from dataclasses import fields, replace
from functools import cache
from itertools import combinations
from typing import NamedTuple

import pytest
import torch
from closed_forms import OTHER_FACTOR, OTHER_MEAN, PLANE, ScriptedBatch
from torch import Tensor

from fastgen.models.rewards import Rewards
from fastgen.models.roles import Roles
from fastgen.models.state import STATES
from fastgen.models.walk import Plan
from fastgen.objectives import OBJECTIVES, Objective, Pair
from fastgen.objectives.distribution.decoupled_dmd import DecoupledDMD
from fastgen.objectives.distribution.diff_instruct import DiffInstruct
from fastgen.objectives.distribution.dmd import DMD
from fastgen.objectives.distribution.dmd2 import DMD2
from fastgen.objectives.distribution.emd import EMDistillation
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.k_dmd import KnowledgeGuidedDMD
from fastgen.objectives.distribution.phased_dmd import PhasedDMD
from fastgen.objectives.distribution.sfd import ScoreForgetting
from fastgen.objectives.distribution.sid import SiD, SiDLSG
from fastgen.objectives.distribution.sida import FewStepSiD, SiDA
from fastgen.objectives.distribution.sim import SIM
from fastgen.objectives.distribution.smd import BESIDE, ScoreOfMixture
from fastgen.objectives.distribution.tdm import TDM
from fastgen.objectives.distribution.uni_instruct import UniInstruct
from fastgen.objectives.distribution.vsd import VSD, SwiftBrush
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Fixed, LongShort, Shared
from fastgen.objectives.parts.matching import Matching
from fastgen.objectives.reward.dmdr import DMDR
from fastgen.objectives.trajectory.rcm import RegularisedConsistency
from fastgen.process import Flow, Process, Uniform, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, ExactRatio, Mixture
from fastgen.proofs.toy import toy_batch

SIZE = 8192


class Even(Uniform):
    """The uniform law without its chance: evenly spread times in random order."""

    def sample(self, process: Process, count: int, rng: torch.Generator) -> Tensor:
        return self.low + (self.high - self.low) * (torch.randperm(count, generator=rng).double() + 0.5) / count


TIMES = Even(0.3, 0.9)
OWN = {"emd": {"corrections": 2, "noise_step": 0.5, "latent_step": 0.3}, "sfd": {"instead": {"0": "1"}}}
"""Settings that need no more noises than `drawn` has, where the usual ones do, and those that no default has."""


def fixture(objective: Objective, steps: int) -> Roles:
    generator = AffineGenerator(Flow(), OTHER_MEAN + 0.5, OTHER_FACTOR)
    law = generator.law()  # of either class
    both = Mixture(law.means.expand(2, -1), law.covariances.expand(2, -1, -1), labels=torch.arange(2))
    real, fake = ExactDenoiser(Flow(), PLANE), ExactDenoiser(Flow(), both)
    members = {
        "generator": generator,
        "real_score": real,
        "fake_score": fake,
        "discriminator": ExactRatio(real, fake),
        "coach": AffineGenerator(Flow(), OTHER_MEAN, OTHER_FACTOR),
        "rewards": Rewards(lambda x: x, {"first": lambda x, _: x[:, 0]}, [1.0]),
        **{name: STATES[name]() for name in objective.needs.states},
    }
    sampler = objective.needs.sampler or "renoise"
    return Roles(members, Plan([even_grid(steps)], sampler=sampler))


def drawn(seed: int, depth_seed: int) -> ScriptedBatch:
    """Rows whose noises fill space evenly."""
    rng, shared_rng = (torch.Generator().manual_seed(s) for s in (seed, depth_seed))
    plain = toy_batch(PLANE, SIZE, rng, shared_rng)
    u = torch.quasirandom.SobolEngine(16, scramble=True, seed=seed).draw(SIZE, dtype=torch.float64)
    *noises, eps = torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)).chunk(8, dim=1)
    return ScriptedBatch(plain.cond, (2,), rng, shared_rng, real=plain.x0, pairs=Pair(eps, plain.x0), script=noises)


def gradient(objective: Objective, *, steps: int = 2, seed: int = 0) -> Tensor:
    """Of the generator's whole loss by its mean and factor [6], at both depths of the grid."""
    roles = fixture(objective, steps)
    for depth_seed in (1, 3):  # of the shared stream: it draws the grid and then a depth
        with roles.training(("generator",)):
            batch = drawn(seed + depth_seed, depth_seed)
            batch.kept = PLANE.cond(torch.ones(SIZE, dtype=torch.long)) if objective.needs.instead else None
            sum(objective.generator(roles, batch).values()).backward()
    return torch.cat([parameter.grad.flatten() for parameter in roles.parameters("generator")]) / 2


def settled(objective: Objective) -> Objective:
    """With the times that all of them look at."""
    has_times = "times" in {entry.name for entry in fields(objective)}
    return replace(objective, times=TIMES) if has_times else objective


@cache
def of(name: str, seed: int = 0, steps: int = 2) -> Tensor:
    return gradient(settled(OBJECTIVES[name](**OWN.get(name, {}))), seed=seed, steps=steps)


def angle(a: Tensor, b: Tensor) -> float:
    """In radians; 0.045 is a cosine of 0.999."""
    return torch.cosine_similarity(a, b, dim=0).clamp(-1, 1).acos().item()


MATCHING = [name for name, kind in OBJECTIVES.items() if isinstance(kind(), Matching)]


@pytest.mark.parametrize(("one", "other"), combinations(MATCHING, 2))
def test_no_two_objectives_have_one_gradient(one: str, other: str):
    steps = 8 if {one, other} == {"tdm", "phased_dmd"} else 2  # phases of one step are segments
    between = angle(of(one, steps=steps), of(other, steps=steps))
    assert between > 0.045
    chance = max(angle(of(name, steps=steps), of(name, seed=17, steps=steps)) for name in (one, other))
    assert between > chance, "only the draws differ"


class Same(NamedTuple):
    """Two settings that the papers make one objective, the steps at which they are, and why."""

    one: Objective
    other: Objective
    steps: int
    because: str


NO_GAN, PLAIN = GAN(0.0), Fixed(1.0)
ALL_OF_THE_DATA = ScoreOfMixture(shares=(1.0, 1.0), gan=replace(BESIDE, start=10**9))
ONE_CORRECTION = EMDistillation(corrections=1, latent_step=0.0)
SID = SiD(alpha=1.0)
SAME_BY_THE_PAPER = {
    "swiftbrush, vsd": Same(SwiftBrush(), VSD(guidance=Shared(4.5, 4.5), rollout="one_step"), 2, "its settings"),
    "dmd, dmd2": Same(DMD(regression=0.0), DMD2(gan=NO_GAN, rollout="one_step"), 2, "regression and GAN left out"),
    "dmd2, f_distill": Same(DMD2(), FDistill(divergence="reverse_kl"), 2, "h = 1"),
    "dmd2, smd": Same(DMD2(gan=NO_GAN, rollout="one_step"), ALL_OF_THE_DATA, 2, "a mixture of the data alone"),
    "dmd2, tdm": Same(DMD2(gan=NO_GAN), TDM(), 1, "one segment that ends at clean data"),
    "dmd2, phased_dmd": Same(DMD2(gan=NO_GAN), PhasedDMD(phases=1), 1, "one phase"),
    "tdm, phased_dmd": Same(TDM(), PhasedDMD(), 2, "phases of one step each"),
    "dmd2, decoupled_dmd": Same(DMD2(gan=NO_GAN), DecoupledDMD(augmentation=1.0, floor=1e-5), 2, "no augmentation"),
    "rcm, dmd2": Same(RegularisedConsistency(guidance=PLAIN, tangent=0.0), DMD2(gan=NO_GAN), 2, "no tangents"),
    "vsd, dmd2": Same(VSD(weight="l1", guidance=PLAIN, gan=GAN()), DMD2(), 2, "DMD's weight, no guidance"),
    "diff_instruct, vsd": Same(DiffInstruct(weight="vsd"), VSD(guidance=PLAIN, rollout="one_step"), 2, "VSD's weight"),
    "tdm, dmd": Same(TDM(weight="kl", gan=GAN()), DMD(regression=0.0, weight="kl", gan=GAN()), 1, "one segment"),
    "decoupled_dmd, dmd2": Same(DecoupledDMD(augmentation=1.0, floor=1e-5, gan=GAN()), DMD2(), 2, "no augmentation"),
    "sida, sim": Same(
        SiDA(weight="none", gan=GAN()), SIM(distance="square", gan=GAN()), 2, "d'(y) = y beside one adversary"
    ),
    "emd, diff_instruct": Same(ONE_CORRECTION, DiffInstruct(), 2, "one step of the noise alone"),
    "dmd2, k_dmd": Same(DMD2(gan=NO_GAN), KnowledgeGuidedDMD(knowledge=0.0), 2, "no coach"),
    "dmd2, dmdr": Same(DMD2(gan=NO_GAN), DMDR(reward=0.0), 2, "nothing is rewarded"),
    "sid, sfd": Same(SID, ScoreForgetting(), 2, "nothing is forgotten"),
    "sid, sida": Same(SID, SiDA(gan=NO_GAN), 2, "no GAN"),
    "sid, sid_lsg": Same(SID, SiDLSG(guidance=LongShort(1.0)), 2, "no guidance"),
    "sida, sid_few_step": Same(SiDA(gan=GAN()), FewStepSiD(guidance=PLAIN, gan=GAN()), 1, "one step, no guidance"),
    "sid, sim": Same(SiD(alpha=1.0, weight="none"), SIM(distance="square"), 2, "d'(y) = y"),
    "sid, uni_instruct": Same(SiD(alpha=0.5), UniInstruct(divergence="reverse_kl", gan=GAN(start=1)), 2, "h = 1"),
}


@pytest.mark.parametrize("names", SAME_BY_THE_PAPER)
def test_neighbours_meet_where_the_papers_say(names: str):
    same = SAME_BY_THE_PAPER[names]
    one, other = (gradient(settled(objective), steps=same.steps) for objective in (same.one, same.other))
    assert angle(one, other) < 1e-6, same.because
