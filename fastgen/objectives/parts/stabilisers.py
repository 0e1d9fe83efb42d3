"""What steadies a matching of scores beside a paper's own loss: settings that every member of the family has."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...models.masters import moved
from ...models.owned import owned
from ...models.roles import Roles
from ...seeds import seed_of
from .anchors import NO_DIVERSITY, NO_SEGMENTS, AnyDiversity, AnySegments, check_weight
from .base import Batch, Landing, Terms
from .matching import Matching, fake_denoising
from .needs import Needs
from .ops import Noised, drawn_times


@dataclass(frozen=True)
class Stabilisers:
    """What steadies two scores, and what trains the first step where they do not. All are off unless set.

    Args:
        follow: share of the generator that the fake score takes over after each of the generator's updates, before its
            own: implicit distribution alignment, SenseFlow (2025, arXiv:2506.00523), whose is 0.03; see `follow`.
        real: weight of real samples in the fake score's loss beside 1 of generated ones; it then believes in the
            mixture of both, so that the direction at x_t shrinks to q / (q + real p) of itself, with q the generated
            samples' density there and p the data's. 0.1 in an open trainer of Phased DMD.
        skip: no distributions are matched at the first of several steps, which learns by `diversity` alone. (By
            `segments` it could not: their second part is the student itself, at times where nothing trains it.)
        segments: steps are held to the teacher's within their own segment.
        diversity: the first step is held to the teacher's trajectory.

    Raises:
        ValueError: a share or weight out of range, or first steps that nothing trains.
    """

    follow: float = 0.0
    real: float = 0.0
    skip: bool = False
    segments: AnySegments = NO_SEGMENTS
    diversity: AnyDiversity = NO_DIVERSITY

    def __post_init__(self) -> None:
        check_weight("stabilisers.real", self.real)
        if not 0 <= self.follow < 1:
            raise ValueError(
                f"stabilisers.follow is {self.follow:g}: the share of the generator that the fake score takes over, "
                "need 0 (none) <= follow < 1 (it would be the generator), such as 0.03"
            )
        if self.skip and not self.diversity.weight:
            raise ValueError(
                "stabilisers.skip is true: nothing trains the first step, set stabilisers.diversity or leave skip out"
            )

    def check_followed(self, needs: Needs) -> None:
        """Raises ValueError for a fake score that is to follow a generator, and is not told all that it is told."""
        told = {*needs.scalars_of("generator")}.difference(needs.scalars_of("fake_score"))
        if told:
            raise ValueError(
                f"stabilisers.follow is {self.follow:g}, but the generator is told {' and '.join(told)} beside its "
                "time and the fake score is not, so that it is no network to follow: set it to 0"
            )

    @property
    def needs(self) -> Needs:
        own = Needs(images=self.real > 0, follows=self.follow > 0, steps=1 + self.skip, anchored=self.skip)
        return own | self.segments.needs | self.diversity.needs

    def of_generator(self, roles: Roles, batch: Batch) -> Terms:
        """The generator's further terms."""
        held = [term for term in (self.segments, self.diversity) if term.weight]
        return {name: value for one in held for name, value in one.terms(roles, batch).items()}

    def of_fake_score(self, settings: Matching, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        """The fake score's further terms."""
        if not self.real:
            return {}
        t = drawn_times(roles, batch, law=settings.fake_times, s=landing.s)
        noised = Noised.of(roles.process, batch.x0, t, batch.noise())
        real = replace(landing, x=batch.x0, x0=batch.x0)
        return {"real": self.real * fake_denoising(settings, roles, batch, real, noised)}

    def before_fake_score(self, roles: Roles, batch: Batch) -> None:
        """Lets the fake score follow, once, where the generator's turn was the one before."""
        if self.follow and "generator" in batch.after and not batch.part:
            follow(roles, batch, self.follow)


NO_STABILISERS = Stabilisers()


def follow(roles: Roles, batch: Batch, share: float) -> None:
    """Moves the fake score's weights by a share of the way to the generator's; what only the fake score has stays.

    fake <- (1 - share) fake + share generator, exactly for whole networks and for all that is no product. Of low-rank
    updates B A the factors move, and the update with them but for

        share (1 - share) (B_fake - B_generator) (A_fake - A_generator),

    which is what B A would have to gain: the exact mean has twice the rank. It is nothing where either pair of factors
    agrees, and so of second order in the distance of two adapters that began with the same A, as those of a fake score
    that follows do. Where it settles, and at shares 0 and 1, it is exact.

    Raises:
        ValueError: the fake score lacks a parameter of the generator's.
    """
    fake, generator = owned(roles["fake_score"]), owned(roles["generator"])
    pairs: dict[int, tuple[Tensor, Tensor]] = {}
    for name, place in generator.places.items():
        mine = fake.places.get(name)
        if mine is None or mine.shape != place.shape:
            raise ValueError(f"the fake score has no {name} like the generator's: it follows one of its own form alone")
        pairs[mine.tensor] = fake.tensors[mine.tensor], generator.tensors[place.tensor]
    followers, leaders = zip(*pairs.values(), strict=True)
    position = int(torch.randint(2**62, (), generator=batch.shared_rng, device=batch.shared_rng.device))
    moved(followers, leaders, share, rng=torch.Generator(batch.rng.device).manual_seed(seed_of(position)))
