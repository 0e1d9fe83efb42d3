"""How the consistency family is trained on the proof bed: without guidance, from the exact teacher or from data."""

from dataclasses import replace
from typing import Any

from ..objectives.adversarial.lightning import Lightning
from ..objectives.distribution.anyflow import AnyFlow
from ..objectives.parts.curricula import Doubling, Ratio
from ..objectives.parts.gan import GAN, NO_GAN
from ..objectives.parts.guidance_laws import Fixed
from ..objectives.parts.solvers import Guidance
from ..objectives.regression.reflow import Reflow
from ..objectives.trajectory.alphaflow import AlphaFlow
from ..objectives.trajectory.ayf import AlignYourFlow
from ..objectives.trajectory.boot import Bootstrapping
from ..objectives.trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from ..objectives.trajectory.ctm import ConsistencyTrajectory
from ..objectives.trajectory.freeflow import FreeFlow
from ..objectives.trajectory.imm import InductiveMomentMatching
from ..objectives.trajectory.improved_meanflow import ImprovedMeanFlow
from ..objectives.trajectory.lcm import LatentConsistency
from ..objectives.trajectory.mdt_dist import MarginalDataTransport
from ..objectives.trajectory.meanflow import MeanFlow
from ..objectives.trajectory.pcm import PhasedConsistency
from ..objectives.trajectory.pdd import ParallelDecoding
from ..objectives.trajectory.perflow import PiecewiseRectifiedFlow
from ..objectives.trajectory.progressive import Progressive
from ..objectives.trajectory.rcm import RegularisedConsistency
from ..objectives.trajectory.sana_sprint import SanaSprint
from ..objectives.trajectory.scflow import SelfCorrectedFlow
from ..objectives.trajectory.scm import SimplifiedConsistency
from ..objectives.trajectory.scott import StochasticConsistency
from ..objectives.trajectory.self_shortcut import SelfShortcut
from ..objectives.trajectory.shortcut import Shortcut
from ..objectives.trajectory.std import SingleTrajectory
from ..objectives.trajectory.tbcm import TrajectoryBackward
from ..objectives.trajectory.tcm import TruncatedConsistency
from ..objectives.trajectory.tdd import TargetDriven
from ..objectives.trajectory.tscd import SegmentedConsistency
from ..objectives.trajectory.twinflow import TwinFlow
from ..process import Beta, Karras, LogNormal, Uniform
from .recipes import SHIFT
from .training import SIZE, Recipe

PLAIN = Guidance()
SMALL_GAN = GAN(0.1, learned=0.5, kind="hinge", times=LogNormal(0.1, 1.0), paired="times")
WARMUP = 200 * SIZE
ANY_TIME = LogNormal(0.0, 1.6)
ONE: dict[str, Any] = {"cycles": 1000}
TWO: dict[str, Any] = ONE | {"steps": 2, "shift": SHIFT}
FOUR: dict[str, Any] = ONE | {"steps": 4, "shift": SHIFT}
SOFT = 0.1
"""c of the Huber distances: the papers' are for images, and so near an absolute value that the plane's errors stay."""
SHARP = 0.0015
"""c of the tangents: the paper's 0.1 is beside the norm of thousands of elements, of which the plane has two."""

FIRST = Recipe(Progressive(divided=4, substeps=8), cycles=300, name="first")
LIGHTNING: dict[str, Any] = {"cycles": 300, "rate": 1e-3, "carry": {"real_score": "first"}}
"""A round from four steps to one."""
REFLOWED = Recipe(Reflow(), cycles=300, name="straight")
ECT = Recipe(ConsistencyTraining(curriculum=Ratio(images=WARMUP, times=Karras()), huber=SOFT), **ONE)

TRAJECTORY_RECIPES: dict[str, Recipe] = {
    "cd": Recipe(ConsistencyDistillation(), **ONE),
    "ict": Recipe(ConsistencyTraining(curriculum=Doubling(images=1000 * SIZE, last=160)), **ONE),
    "ect": ECT,
    "tcm": Recipe(TruncatedConsistency(huber=SOFT), cycles=400, before=(ECT,), carry={"real_score": "generator"}),
    "lcm": Recipe(LatentConsistency(teacher_guidance=PLAIN, huber=SOFT), **ONE),
    "lcm_2step": Recipe(LatentConsistency(teacher_guidance=PLAIN, huber=SOFT), **TWO),
    "scott": Recipe(
        StochasticConsistency(teacher_guidance=PLAIN, grid=18, ema=0.5, gan=replace(SMALL_GAN, weight=0.4)), **ONE
    ),
    "scflow": Recipe(
        SelfCorrectedFlow(teacher_guidance=PLAIN, huber=SOFT),
        cycles=300,
        before=(REFLOWED,),
        carry={"real_score": "straight"},
    ),
    "pcm_2step": Recipe(PhasedConsistency(teacher_guidance=PLAIN, huber=SOFT), **TWO),
    "pcm_4step": Recipe(PhasedConsistency(teacher_guidance=PLAIN, huber=SOFT, gan=NO_GAN), **FOUR),
    "tscd_4step": Recipe(SegmentedConsistency(teacher_guidance=PLAIN, segments=4), **FOUR),
    "tdd_4step": Recipe(TargetDriven(teacher_guidance=PLAIN, huber=SOFT, gan=NO_GAN, dropout=0.0, jitter=0.0), **FOUR),
    "std_4step": Recipe(
        SingleTrajectory(
            teacher_guidance=PLAIN,
            grid=8,
            substeps=4,
            huber=SOFT,
            gan=GAN(0.1, learned=1.0, kind="hinge", pixels=True),
        ),
        steps=4,
        shift=SHIFT,
        cycles=800,
    ),
    "scm": Recipe(SimplifiedConsistency(warmup=WARMUP, normaliser=SHARP, times=ANY_TIME), **ONE),
    "scm_2step": Recipe(SimplifiedConsistency(warmup=WARMUP, normaliser=SHARP, times=ANY_TIME), **TWO),
    "sana_sprint": Recipe(
        SanaSprint(teacher_guidance=PLAIN, warmup=WARMUP, normaliser=SHARP, times=ANY_TIME, gan=SMALL_GAN), **ONE
    ),
    "rcm": Recipe(
        RegularisedConsistency(
            guidance=Fixed(1.0),
            consistency=SimplifiedConsistency(warmup=WARMUP, normaliser=SHARP, times=ANY_TIME, weighting="uniform"),
            tangent=1.0,
            times=Uniform(0.02, 0.98),
            fake_times=Uniform(),
            ratio=2,
        ),
        cycles=300,
    ),
    "meanflow": Recipe(MeanFlow(diagonal=0.25, times=Uniform()), **ONE),
    "meanflow_2step": Recipe(MeanFlow(diagonal=0.25, times=Uniform()), **TWO),
    "improved_meanflow": Recipe(ImprovedMeanFlow(diagonal=0.25, times=Uniform()), cycles=400),
    "alphaflow": Recipe(AlphaFlow(times=Uniform(), end=800 * SIZE), **ONE),
    "ayf": Recipe(AlignYourFlow(times=Uniform(), warmup=WARMUP, normaliser=SHARP), cycles=500),
    "mdt_dist": Recipe(MarginalDataTransport(times=Uniform()), cycles=600),
    "ctm": Recipe(ConsistencyTrajectory(ema=0.95, gan=SMALL_GAN), cycles=300),
    "imm": Recipe(InductiveMomentMatching(group=16, k=7, b=0.0, dropout=0.0), cycles=1000, rate=4e-3),
    "imm_teacher": Recipe(
        InductiveMomentMatching(velocity="real_score", group=16, k=10, dropout=0.0), cycles=1000, rate=4e-3
    ),
    "anyflow_4step": Recipe(
        AnyFlow(guidance=Fixed(1.0), ratio=2, counts=(2, 4, 8)),
        before=(Recipe(MeanFlow(diagonal=0.25, times=Uniform()), steps=4, shift=SHIFT, cycles=500),),
        steps=4,
        shift=SHIFT,
        rate=5e-4,
    ),
    "shortcut": Recipe(Shortcut(bootstrapped=0.75, ema=0.95, levels=5), **ONE),
    "shortcut_4step": Recipe(Shortcut(bootstrapped=0.75, ema=0.95, levels=3), **FOUR),
    "scfm_4step": Recipe(SelfShortcut(substeps=8, ema=0.95), **FOUR),
    "progressive": Recipe(Progressive(substeps=32), **ONE),
    "progressive_4step": Recipe(Progressive(substeps=8), **FOUR),
    "lightning": Recipe(
        Lightning(judged="end", substeps=4), before=(FIRST, Recipe(Lightning(substeps=4), **LIGHTNING)), **LIGHTNING
    ),
    "perflow_4step": Recipe(PiecewiseRectifiedFlow(times=Beta(32.0, 1.0)), **FOUR),
    "pdd": Recipe(ParallelDecoding(heads=32), **ONE),
    "pdd_midpoint_4step": Recipe(ParallelDecoding(heads=16, target="midpoint"), **FOUR),
    "freeflow": Recipe(FreeFlow(power=0.0, times=Uniform()), cycles=600),
    "boot": Recipe(Bootstrapping(), **ONE),
    "tbcm": Recipe(
        TrajectoryBackward(route=8, teacher_guidance=PLAIN, warmup=WARMUP, normaliser=SHARP, weighting="uniform"),
        cycles=600,
    ),
    "twinflow": Recipe(TwinFlow(teacher_guidance=PLAIN), cycles=600, rate=5e-4),
}
"""Objectives that hold on the flow process alone (process="flow" in their needs) have no recipe on others."""
