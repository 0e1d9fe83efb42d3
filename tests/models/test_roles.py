"""Who of the roles is trained, and what is said of one that is not there."""

import pytest
import torch
from towers import VP, Tower, network

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan


def roles() -> Roles:
    members = {name: network(Tower()) for name in ("generator", "fake_score", "real_score")}
    return Roles(members, Plan([torch.ones(1)]))


def trainable(held: Roles) -> set[str]:
    return {name for name in held.members if any(p.requires_grad for p in held.parameters(name))}


def test_only_the_turns_roles_train_and_only_within_the_turn():
    held = roles()
    assert trainable(held) == set()
    with held.training(("generator",)):
        assert trainable(held) == {"generator"}
    with held.training(("fake_score", "generator")):
        assert trainable(held) == {"fake_score", "generator"}
    with pytest.raises(ZeroDivisionError), held.training(("generator",)):
        _ = 1 / 0
    assert trainable(held) == set()


def test_a_missing_role_is_named():
    held = roles()
    assert "target" not in held
    with pytest.raises(KeyError, match="no role 'target'; it has generator, fake_score, real_score"):
        _ = held.target
    with pytest.raises(KeyError, match="no role 'discriminator'"), held.training(("discriminator",)):
        pass


def test_roles_speak_the_generators_process():
    assert roles().process is VP
