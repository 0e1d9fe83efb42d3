"""What is minimised: one small file per objective."""

from .base import Batch, Landing, Objective, Pair, Terms, Turn, roles_of
from .dmd import DMD
from .dmd2 import DMD2
from .kd import KnowledgeDistillation
from .pretrain import Pretrain
from .vsd import VSD

OBJECTIVES: dict[str, type[Objective]] = {
    # teachers
    "pretrain": Pretrain,
    # distribution matching
    "vsd": VSD,
    "dmd": DMD,
    "dmd2": DMD2,
    # regression
    "kd": KnowledgeDistillation,
}

__all__ = ["OBJECTIVES", "Batch", "Landing", "Objective", "Pair", "Terms", "Turn", "roles_of"]
