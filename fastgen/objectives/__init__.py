"""What is minimised: one small file per objective."""

from .base import Batch, Landing, Objective, Pair, Terms, Turn, roles_of, scalars_of
from .decoupled_dmd import DecoupledDMD
from .diff_instruct import DiffInstruct
from .dmd import DMD
from .dmd2 import DMD2
from .f_distill import FDistill
from .kd import KnowledgeDistillation
from .phased_dmd import PhasedDMD
from .pretrain import Pretrain
from .sid import SiD, SiDLSG
from .sida import FewStepSiD, SiDA
from .sim import SIM
from .tdm import TDM
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
    # regression
    "kd": KnowledgeDistillation,
}

__all__ = ["OBJECTIVES", "Batch", "Landing", "Objective", "Pair", "Terms", "Turn", "roles_of", "scalars_of"]
