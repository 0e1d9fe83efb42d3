"""What is minimised: one small file per objective."""

from .base import Batch, Landing, Objective, Pair, Terms, Turn, roles_of, scalars_of
from .consistency import ConsistencyDistillation, ConsistencyTraining
from .decoupled_dmd import DecoupledDMD
from .diff_instruct import DiffInstruct
from .dmd import DMD
from .dmd2 import DMD2
from .f_distill import FDistill
from .guidance_distillation import GuidanceDistillation
from .kd import KnowledgeDistillation
from .lcm import LatentConsistency
from .meanflow import MeanFlow
from .pcm import PhasedConsistency
from .phased_dmd import PhasedDMD
from .pretrain import Pretrain
from .progressive import Progressive
from .sana_sprint import SanaSprint
from .scm import SimplifiedConsistency
from .self_shortcut import SelfShortcut
from .shortcut import Shortcut
from .sid import SiD, SiDLSG
from .sida import FewStepSiD, SiDA
from .sim import SIM
from .tdd import TargetDriven
from .tdm import TDM
from .tscd import SegmentedConsistency
from .uni_instruct import UniInstruct
from .vsd import VSD, SwiftBrush

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
    "tdm": TDM,
    "phased_dmd": PhasedDMD,
    "decoupled_dmd": DecoupledDMD,
    # distribution matching through both scores
    "sid": SiD,
    "sida": SiDA,
    "sid_lsg": SiDLSG,
    "sid_few_step": FewStepSiD,
    "sim": SIM,
    "uni_instruct": UniInstruct,
    # consistency: one step from anywhere on a trajectory
    "cd": ConsistencyDistillation,
    "ct": ConsistencyTraining,
    "lcm": LatentConsistency,
    "scm": SimplifiedConsistency,
    "sana_sprint": SanaSprint,
    # consistency up to the student's own times
    "pcm": PhasedConsistency,
    "tscd": SegmentedConsistency,
    "tdd": TargetDriven,
    # flow maps and halved steps
    "meanflow": MeanFlow,
    "shortcut": Shortcut,
    "self_shortcut": SelfShortcut,
    "progressive": Progressive,
    # regression
    "kd": KnowledgeDistillation,
    "guidance_distillation": GuidanceDistillation,
}

__all__ = ["OBJECTIVES", "Batch", "Landing", "Objective", "Pair", "Terms", "Turn", "roles_of", "scalars_of"]
