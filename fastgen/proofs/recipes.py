"""How each objective is trained on the proof bed: without guidance, and without data where it can do so."""

from typing import Any

from ..objectives.adversarial.add import ADD
from ..objectives.adversarial.apt import APT
from ..objectives.adversarial.gdd import GDD
from ..objectives.adversarial.ladd import LADD
from ..objectives.distribution.asd import AdversarialSelfDistillation
from ..objectives.distribution.decoupled_dmd import DecoupledDMD
from ..objectives.distribution.diff_instruct import DiffInstruct
from ..objectives.distribution.dmd import DMD
from ..objectives.distribution.dmd2 import DMD2
from ..objectives.distribution.dp_dmd import DPDMD
from ..objectives.distribution.emd import EMDistillation
from ..objectives.distribution.f_distill import FDistill
from ..objectives.distribution.k_dmd import KnowledgeGuidedDMD
from ..objectives.distribution.phased_dmd import PhasedDMD
from ..objectives.distribution.sfd import ScoreForgetting
from ..objectives.distribution.sid import SiD, SiDLSG
from ..objectives.distribution.sida import FewStepSiD, SiDA
from ..objectives.distribution.sim import SIM
from ..objectives.distribution.smd import ScoreOfMixture
from ..objectives.distribution.tdm import TDM
from ..objectives.distribution.uni_instruct import UniInstruct
from ..objectives.distribution.vsd import VSD, SwiftBrush
from ..objectives.parts.anchors import Diversity, Segments
from ..objectives.parts.gan import GAN, NO_GAN
from ..objectives.parts.guidance_laws import Fixed, LongShort, Shared
from ..objectives.parts.stabilisers import Stabilisers
from ..objectives.regression.degradation import Degradation
from ..objectives.regression.kd import KnowledgeDistillation
from ..objectives.regression.reflow import Reflow
from ..objectives.reward.dmdr import DMDR
from ..objectives.trajectory.consistency import ConsistencyDistillation
from ..process import LogNormal
from .training import SIZE, Recipe

SHIFT = 5.0
TWO: dict[str, Any] = {"steps": 2, "shift": SHIFT, "cycles": 400, "rate": 1e-3}
FOUR: dict[str, Any] = TWO | {"steps": 4}
"""Times near the noise: on even ones the teacher's own four steps end close to the data and leave little to learn."""
LONG: dict[str, Any] = {"steps": 4, "shift": 8.0, "cycles": 1000}
"""For students that step deterministically, where the errors of four steps add up."""
MIDDLE, WIDE, LOW = LogNormal(0.5, 1.0), LogNormal(0.0, 1.4), LogNormal(-0.4, 1.4)
"""Levels where the modes are told apart: on EDM's own times most are so noisy that only the mean is seen, and the two
networks chase each other's."""
DISBACK = (
    Recipe(Degradation(), cycles=50, name="half"),
    Recipe(Degradation(), cycles=50, name="whole"),
    Recipe(
        DMD2(gan=NO_GAN, ratio=2),
        cycles=100,
        carry={"generator": "teacher", "real_score": "half", "fake_score": "whole"},
    ),
)
"""The way out, and back as far as half of it."""

COACH = (Recipe(ConsistencyDistillation(), steps=2, shift=SHIFT, cycles=300, name="few"),)
"""A student of two steps, at a third of its training."""

ADVERSARY = GAN(weight=1.0, learned=1.0, kind="hinge", times=LogNormal(0.0, 1.0))
OWN = GAN(0.1, learned=0.5, kind="relativistic", approximate_r1=1.0, approximate_r2=1.0, spread=0.05)
WITHIN = Stabilisers(segments=Segments(0.1))
BEGUN = Stabilisers(skip=True, diversity=Diversity())
"""What trains the first step where nothing is matched at it."""

RECIPES: dict[str, Recipe] = {
    "kd": Recipe(KnowledgeDistillation(), cycles=500),
    "reflow": Recipe(Reflow(), cycles=1000),
    "vsd": Recipe(VSD(guidance=Fixed(1.0), ratio=2)),
    "swiftbrush": Recipe(SwiftBrush(guidance=Shared(1.0, 1.0), ratio=2), cycles=500),
    "diff_instruct": Recipe(DiffInstruct(ratio=2)),
    "dmd": Recipe(DMD(ratio=2)),
    "dmd2": Recipe(DMD2(gan=NO_GAN, ratio=2)),
    "dmd2_2step": Recipe(DMD2(gan=NO_GAN, ratio=2), **TWO, judged="landings"),
    "dmd2_4step": Recipe(DMD2(gan=NO_GAN, ratio=2), **FOUR, judged="landings"),
    "dmd2_aware_2step": Recipe(DMD2(gan=NO_GAN, ratio=2, step_aware=True), **TWO),
    "dmd2_aware_4step": Recipe(DMD2(gan=NO_GAN, ratio=2, step_aware=True), **FOUR),
    "dmd2_following": Recipe(DMD2(gan=NO_GAN, ratio=2, stabilisers=Stabilisers(follow=0.03))),
    "dmd2_segments_2step": Recipe(DMD2(gan=NO_GAN, ratio=2, step_aware=True, stabilisers=WITHIN), **TWO),
    "f_distill": Recipe(FDistill(ratio=2)),
    "f_distill_forward_kl": Recipe(FDistill(divergence="forward_kl", ratio=2)),
    "smd": Recipe(ScoreOfMixture(ratio=2)),
    "tdm": Recipe(TDM(ratio=2)),
    "tdm_4step": Recipe(TDM(weight="vsd", times=MIDDLE, fake_times=WIDE, fake_space="difference", ratio=2), **LONG),
    "tdm_diversity_2step": Recipe(TDM(ratio=2, stabilisers=BEGUN), **TWO),
    "phased_dmd_4step": Recipe(
        PhasedDMD(weight="kl", even=False, times=MIDDLE, fake_times=WIDE, ratio=2, step_aware=True), **LONG
    ),
    "asd_2step": Recipe(AdversarialSelfDistillation(gan=OWN, guidance=Fixed(1.0), ratio=2), **TWO),
    "k_dmd_2step": Recipe(
        KnowledgeGuidedDMD(ratio=2), **TWO, before=COACH, carry={"generator": "teacher", "coach": "few"}
    ),
    "decoupled_dmd": Recipe(DecoupledDMD(augmentation=1.0, ratio=2)),
    "dp_dmd_2step": Recipe(DPDMD(guidance=Fixed(1.0), ratio=2), **TWO),
    "disback": Recipe(DMD2(gan=NO_GAN, ratio=2), cycles=250, before=DISBACK, carry={"fake_score": "fake_score"}),
    "emd": Recipe(EMDistillation(ratio=2, corrections=4)),
    "dmdr": Recipe(DMDR(ratio=2, renoise=100 * SIZE)),
    "sid": Recipe(SiD(ratio=2)),
    "sid_half": Recipe(SiD(alpha=0.5, ratio=2)),
    "sida": Recipe(SiDA(ratio=2)),
    "sid_lsg": Recipe(SiDLSG(guidance=LongShort(1.0), ratio=2)),
    "sfd": Recipe(ScoreForgetting(times=LOW, fake_times=LOW, ratio=2, instead={"0": "1"}), cycles=500),
    "sid_few_step": Recipe(
        FewStepSiD(guidance=Fixed(1.0), times=LOW, fake_times=LOW, fake_space="edm", ratio=2), **TWO, judged="landings"
    ),
    "sim": Recipe(SIM(ratio=2)),
    "uni_instruct": Recipe(UniInstruct(ratio=2)),
    "add": Recipe(ADD(), cycles=600, rate=1e-3),
    "apt": Recipe(APT(), cycles=400),
    "gdd": Recipe(GDD(), cycles=600, rate=4e-3, other_rate=2e-2),
    "ladd": Recipe(LADD(gan=ADVERSARY, real="images"), cycles=600, rate=1e-3),
}
"""A fake score that is not told the step sees the mixture of all landings, and only that mixture is matched."""
