"""What is set of a GAN term changes what is learned, or is refused: of every objective that has such a term."""

from dataclasses import replace

import pytest
import torch
from closed_forms import PLANE, streams
from torch import Tensor

from fastgen.models.roles import Roles
from fastgen.objectives import OBJECTIVES, Objective, Pair
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.distribution.sim import SIM
from fastgen.objectives.parts.gan import GAN
from fastgen.process import Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles
from fastgen.unread import UnreadError

ADVERSARIAL = [name for name, kind in OBJECTIVES.items() if hasattr(kind(), "gan")]
SETTINGS = ({"even": True}, {"paired": True}, {"paired": "times"}, {"approximate_r1": 1.0}, {"feature_r1": 1.0})
GAN_BY_WEIGHT = {"sfd", "sid", "sid_few_step", "sid_lsg", "sida", "sim", "uni_instruct"}


def roles_of(objective: Objective) -> Roles:
    """Toys, whose heads do not end in zeros."""
    sampler = objective.needs.sampler or "renoise"
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=0, objective=objective, sampler=sampler)
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in roles["discriminator"].parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng), alpha=0.3)
    return roles


def learned(objective: Objective, roles: Roles) -> Tensor:
    """Every term of every turn, with the same draws each time."""
    found = []
    for turn in dict.fromkeys(objective.cycle):
        batch = toy_batch(PLANE, 16, *streams().values())
        batch.pairs = Pair(batch.noise(), batch.noise()) if objective.needs.pairs else None
        with roles.training(turn):
            terms = getattr(objective, turn[0])(roles, batch)
        found += [term.detach() for term in terms.values()]
    return torch.stack(found)


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_a_setting_of_the_adversary_is_read_or_refused(name: str):
    kind = OBJECTIVES[name]
    usual = kind().gan if kind().gan.weight else GAN(0.1)
    plain = replace(usual, even=False, paired=False, approximate_r1=0.0, feature_r1=0.0, spread=0.01)
    try:
        before = kind(gan=plain)
    except ValueError:
        assert name == "smd", "its adversary has no other settings"
        return
    roles = roles_of(before)
    terms = learned(before, roles)
    for setting in SETTINGS:
        try:
            after = kind(gan=replace(plain, **setting))
        except ValueError:
            continue
        changed = learned(after, roles)
        assert terms.shape != changed.shape or not torch.equal(terms, changed), f"nothing reads {setting}"


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_weights_are_evened_out_where_samples_have_some(name: str):
    kind = OBJECTIVES[name]
    gan = replace(kind().gan if kind().gan.weight else GAN(0.1), even=True)
    settings = {"weight": "l1"} if name == "sim" else {}
    if name in GAN_BY_WEIGHT:
        kind(gan=gan, **settings)
        return
    with pytest.raises(ValueError, match=r"gan.even is True, but no sample .*such as sida|gan has other settings"):
        kind(gan=gan)


@pytest.mark.parametrize("kind", [SIM, SiD])
def test_weights_that_are_all_the_same_are_not_evened_out(kind: type[SIM | SiD]):
    with pytest.raises(UnreadError, match=r"gan\.even is True, but no sample"):
        kind(gan=GAN(even=True), weight="none")
