"""Which roles share a network, and which parameters of those that have their own stay as they are."""

from torch import nn

from ..config.lora import Sharing
from ..config.schema import StageConfig
from ..errors import UserError
from ..models.roles import DENOISERS
from ..models.targets import find_frozen

SHARED: dict[Sharing, tuple[str, ...]] = {"full": (), "scores": ("real_score", "fake_score"), "lora": DENOISERS}
"""The roles on the teacher's own network."""


def frozen_in(role: str, module: nn.Module, stage: StageConfig, sharing: Sharing) -> frozenset[str]:
    """The names of the parameters of a trained role that stay as they are, those of `module`, its network or itself.

    Raises:
        UserError: the role trains an adapter, what is to be frozen is not there, or nothing is left to train.
    """
    wanted, setting = stage.train.optim_of(role).frozen, f"frozen of {role} in stage {stage.name!r}"
    if wanted and role in SHARED[sharing]:
        raise UserError(
            f"{setting} is of a network of the role's own, but under sharing={sharing} it trains an adapter: leave it "
            "out, and choose layers by lora.targets"
        )
    return find_frozen(module, wanted, setting=setting)
