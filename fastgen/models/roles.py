"""The networks of a stage by role, and which of them are being trained."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import cast

from torch import Tensor, nn

from ..process import Process
from .contract import Denoiser, RoleNetwork
from .discriminator import FeatureDiscriminator
from .owned import Owned, collect_gradients, owned
from .rewards import Rewards
from .sharding import load, whole
from .walk import Plan

DENOISERS = ("generator", "fake_score", "real_score", "target", "coach")


class Roles:
    """Networks by role: the denoisers, discriminator, rewards, and small state modules.

    Args:
        members: role name -> module. The denoisers all speak one process.
        plan: how the generator steps where it samples; rollouts keep to it.
        borrowed: roles whose weights are the teacher's for good, so that a checkpoint need not hold them.
        frozen: role -> names of its parameters that stay as they are while it is trained.
    """

    def __init__(
        self,
        members: Mapping[str, nn.Module],
        plan: Plan,
        *,
        borrowed: Sequence[str] = ("real_score",),
        frozen: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self.members = dict(members)
        self._frozen = dict(frozen or {})
        self.plan = plan
        self.own = tuple(name for name in self.members if name not in borrowed)
        for module in self.members.values():
            module.requires_grad_(False)

    def __contains__(self, name: str) -> bool:
        return name in self.members

    def __getitem__(self, name: str) -> nn.Module:
        if name not in self.members:
            raise KeyError(f"this run has no role {name!r}; it has {', '.join(self.members)}")
        return self.members[name]

    @property
    def generator(self) -> Denoiser:
        return cast(Denoiser, self["generator"])

    @property
    def fake_score(self) -> Denoiser:
        return cast(Denoiser, self["fake_score"])

    @property
    def real_score(self) -> Denoiser:
        return cast(Denoiser, self["real_score"])

    @property
    def target(self) -> Denoiser:
        return cast(Denoiser, self["target"])

    @property
    def coach(self) -> Denoiser:
        return cast(Denoiser, self["coach"])

    @property
    def discriminator(self) -> FeatureDiscriminator:
        return cast(FeatureDiscriminator, self["discriminator"])

    @property
    def rewards(self) -> Rewards:
        return cast(Rewards, self["rewards"])

    @property
    def process(self) -> Process:
        return self.generator.process

    def network(self, role: str) -> RoleNetwork:
        """A denoiser among the roles, with what it has of its own."""
        return cast(RoleNetwork, self[role])

    def trained(self, role: str) -> Owned:
        """What is trained of a role, by name."""
        return owned(self[role], but=self._frozen.get(role, ()))

    def parameters(self, role: str) -> list[nn.Parameter]:
        """What an optimizer of that role owns: of an adapter, the tensor that it lies in."""
        return list(self.trained(role).tensors)

    def collect_gradients(self, turn: Sequence[str]) -> None:
        """Gives the parameters of the turn's roles what a backward pass left, added to what they have."""
        for role in turn:
            collect_gradients(self[role])

    @contextmanager
    def training(self, turn: Sequence[str]) -> Iterator[None]:
        """Within, the parameters of the turn's roles that are not frozen require gradients and all others do not."""
        acting = [self[role] for role in turn]
        try:
            for module in acting:
                module.requires_grad_(True)
            for role in turn:
                for name in self._frozen.get(role, ()):
                    self[role].get_parameter(name).requires_grad_(False)
            yield
        finally:
            for module in acting:
                module.requires_grad_(False)


EMBEDDED = "embeddings."
"""What the keys of a role's embeddings begin with beside those of its network."""


def taken(denoiser: RoleNetwork) -> dict[str, Tensor]:
    """What a role has of its own, copied to the CPU: its network or adapter, and its embeddings if it has any.

    Of a sharded network every process gets whole tensors, brought together one by one.
    """
    embedded = {f"{EMBEDDED}{name}": value for name, value in denoiser.embeddings.state_dict().items()}
    own = {**denoiser.own.state_dict(), **embedded}
    return {name: whole(value).to("cpu", copy=True).contiguous() for name, value in own.items()}


def put(denoiser: RoleNetwork, state: Mapping[str, Tensor]) -> None:
    """Gives a role what was `taken` of one; embeddings that the other had not stay as they are."""
    embedded = {name.removeprefix(EMBEDDED): value for name, value in state.items() if name.startswith(EMBEDDED)}
    denoiser.embeddings.load_state_dict(embedded, strict=False)
    load(denoiser.own, without_embeddings(state))


def without_embeddings(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was `taken` of a role's network or adapter alone."""
    return {name: value for name, value in state.items() if not name.startswith(EMBEDDED)}
