"""What is minimised: one small file per objective."""

from typing import Any

from ..models.roles import Roles
from ..plugins import Kinds
from ..process import Latent
from .adversarial.add import ADD
from .adversarial.apt import APT
from .adversarial.gdd import GDD
from .adversarial.ladd import LADD
from .adversarial.lightning import Lightning
from .distribution.anyflow import AnyFlow
from .distribution.asd import AdversarialSelfDistillation
from .distribution.decoupled_dmd import DecoupledDMD
from .distribution.diff_instruct import DiffInstruct
from .distribution.dmd import DMD
from .distribution.dmd2 import DMD2
from .distribution.dp_dmd import DPDMD
from .distribution.emd import EMDistillation
from .distribution.f_distill import FDistill
from .distribution.k_dmd import KnowledgeGuidedDMD
from .distribution.phased_dmd import PhasedDMD
from .distribution.sfd import ScoreForgetting
from .distribution.sid import SiD, SiDLSG
from .distribution.sida import FewStepSiD, SiDA
from .distribution.sim import SIM
from .distribution.smd import ScoreOfMixture
from .distribution.tdm import TDM
from .distribution.uni_instruct import UniInstruct
from .distribution.vsd import VSD, SwiftBrush
from .parts.base import Batch, Landing, Objective, Pair, Terms, Turn, denoisers_of, roles_of
from .parts.guidance_laws import AnyGuidance, Fixed
from .parts.matching import Scores
from .parts.needs import Needs
from .parts.rollout import RolloutName
from .parts.score_matching import DirectionMatching, ScoreMatching
from .regression.d_opsd import SelfDistillation
from .regression.degradation import Degradation
from .regression.finetune import Finetune
from .regression.guidance_distillation import GuidanceDistillation
from .regression.kd import KnowledgeDistillation
from .regression.pretrain import Pretrain
from .regression.reflow import Reflow
from .reward.advantage_flow import AdvantageFlow
from .reward.dmdr import DMDR
from .reward.refl import ReFL
from .trajectory.alphaflow import AlphaFlow
from .trajectory.ayf import AlignYourFlow
from .trajectory.boot import Bootstrapping
from .trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from .trajectory.ctm import ConsistencyTrajectory
from .trajectory.freeflow import FreeFlow
from .trajectory.imm import InductiveMomentMatching
from .trajectory.improved_meanflow import ImprovedMeanFlow
from .trajectory.lcm import LatentConsistency
from .trajectory.mdt_dist import MarginalDataTransport
from .trajectory.meanflow import MeanFlow
from .trajectory.pcm import PhasedConsistency
from .trajectory.pdd import ParallelDecoding
from .trajectory.perflow import PiecewiseRectifiedFlow
from .trajectory.progressive import Progressive
from .trajectory.rcm import RegularisedConsistency
from .trajectory.sana_sprint import SanaSprint
from .trajectory.scflow import SelfCorrectedFlow
from .trajectory.scm import SimplifiedConsistency
from .trajectory.scott import StochasticConsistency
from .trajectory.self_shortcut import SelfShortcut
from .trajectory.shortcut import Shortcut
from .trajectory.std import SingleTrajectory
from .trajectory.tbcm import TrajectoryBackward
from .trajectory.tcm import TruncatedConsistency
from .trajectory.tdd import TargetDriven
from .trajectory.tscd import SegmentedConsistency
from .trajectory.twinflow import TwinFlow

OBJECTIVES: dict[str, type[Objective]] = {
    # teachers
    "pretrain": Pretrain,
    # distribution matching by a direction
    "vsd": VSD,
    "swiftbrush": SwiftBrush,
    "diff_instruct": DiffInstruct,
    "dmd": DMD,
    "dmd2": DMD2,
    "f_distill": FDistill,
    "smd": ScoreOfMixture,
    "tdm": TDM,
    "phased_dmd": PhasedDMD,
    "decoupled_dmd": DecoupledDMD,
    "dp_dmd": DPDMD,
    "anyflow": AnyFlow,
    "asd": AdversarialSelfDistillation,
    "k_dmd": KnowledgeGuidedDMD,
    "emd": EMDistillation,
    "dmdr": DMDR,
    # distribution matching through both scores
    "sid": SiD,
    "sida": SiDA,
    "sid_lsg": SiDLSG,
    "sfd": ScoreForgetting,
    "sid_few_step": FewStepSiD,
    "sim": SIM,
    "uni_instruct": UniInstruct,
    # an adversary without a fake score
    "ladd": LADD,
    "add": ADD,
    "gdd": GDD,
    "apt": APT,
    "lightning": Lightning,
    # consistency: one step from anywhere on a trajectory
    "cd": ConsistencyDistillation,
    "ct": ConsistencyTraining,
    "tcm": TruncatedConsistency,
    "lcm": LatentConsistency,
    "scott": StochasticConsistency,
    "scflow": SelfCorrectedFlow,
    "scm": SimplifiedConsistency,
    "sana_sprint": SanaSprint,
    "rcm": RegularisedConsistency,
    # consistency up to the student's own times
    "pcm": PhasedConsistency,
    "tscd": SegmentedConsistency,
    "tdd": TargetDriven,
    "std": SingleTrajectory,
    # flow maps and halved steps
    "meanflow": MeanFlow,
    "improved_meanflow": ImprovedMeanFlow,
    "alphaflow": AlphaFlow,
    "ayf": AlignYourFlow,
    "mdt_dist": MarginalDataTransport,
    "ctm": ConsistencyTrajectory,
    "imm": InductiveMomentMatching,
    "shortcut": Shortcut,
    "self_shortcut": SelfShortcut,
    "progressive": Progressive,
    "perflow": PiecewiseRectifiedFlow,
    # many steps of the teacher in one call
    "pdd": ParallelDecoding,
    # from noise alone
    "freeflow": FreeFlow,
    "boot": Bootstrapping,
    "tbcm": TrajectoryBackward,
    "twinflow": TwinFlow,
    # teachers of a first student
    "degradation": Degradation,
    # regression
    "kd": KnowledgeDistillation,
    "reflow": Reflow,
    "guidance_distillation": GuidanceDistillation,
    # rewards
    "advantage_flow": AdvantageFlow,
    "refl": ReFL,
    # training on a distilled model
    "finetune": Finetune,
    "d_opsd": SelfDistillation,
}


def _try(made: Any) -> None:
    """Raises what hinders a user's objective from being trained."""
    _, needs = made.cycle, made.needs
    if not isinstance(needs, Needs):
        raise TypeError(f"`needs` is {needs!r}: give Needs(...), such as Needs(images=True)")
    roles_of(made)


OBJECTIVE_KINDS = Kinds[Objective](
    "objective", OBJECTIVES, group="fastgen.objectives", members=("cycle", "needs", "generator"), trial=_try
)

__all__ = [
    "OBJECTIVES",
    "OBJECTIVE_KINDS",
    "AnyGuidance",
    "Batch",
    "DirectionMatching",
    "Fixed",
    "Landing",
    "Latent",
    "Needs",
    "Objective",
    "Pair",
    "Roles",
    "RolloutName",
    "ScoreMatching",
    "Scores",
    "Terms",
    "Turn",
    "denoisers_of",
    "roles_of",
]
