"""A fake score that follows the generator: by how much, when, and what of it is exact for low-rank updates."""

import pytest
import small_run
import tiny
import torch
from closed_forms import PLANE, close, streams
from torch import Tensor

from fastgen.config.lora import LoRAConfig
from fastgen.engine.stage import Stage
from fastgen.models import masters
from fastgen.models.masters import halve, moved
from fastgen.models.merging import low_rank_updates
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.roles import Roles
from fastgen.objectives import DMD2, TDM, Fixed
from fastgen.objectives.parts import stabilisers
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.stabilisers import Stabilisers, follow
from fastgen.process import Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

SHARE = 0.25
FOLLOWING = DMD2(gan=GAN(0.0), ratio=3, guidance=Fixed(1.5), stabilisers=Stabilisers(follow=SHARE))
SMALL = LoRAConfig(rank=4, alpha=8)
Weights = dict[str, Tensor]


def weights(stage: Stage, role: str) -> Weights:
    return {name: value.clone() for name, value in stage.roles.network(role).own.state_dict().items()}


def ended(stage: Stage) -> tuple[Weights, Weights, Weights]:
    """The fake score before a cycle in which it learns nothing by itself, the generator after it, the fake score."""
    before = weights(stage, "fake_score")
    stage.optimizers["fake_score"].step = lambda **_: None
    stage.cycle()
    return before, weights(stage, "generator"), weights(stage, "fake_score")


def updates(state: Weights) -> Weights:
    return dict(low_rank_updates(state, alpha=SMALL.alpha))


def test_it_follows_once_a_cycle():
    """By a share of the generator as its update left it, however many turns and micro-batches follow."""
    stage = small_run.stage(Pipeline(tiny.class_conditional()), FOLLOWING, micro_batch=2)
    first = weights(stage, "generator")
    before, generator, fake = ended(stage)
    assert any((generator[name] != first[name]).any() for name in first), "the generator learns"
    close(fake, {name: before[name].lerp(generator[name], SHARE) for name in before})


def test_adapters_that_began_with_one_a_follow_almost_exactly():
    """They miss share (1 - share) (B - B') (A - A') of the mean of their updates: here a hundredth of the change."""
    stage = small_run.stage(Pipeline(tiny.class_conditional()), FOLLOWING, lora=SMALL)
    start, theirs = weights(stage, "fake_score"), weights(stage, "generator")
    assert all(torch.equal(start[name], theirs[name]) for name in start)
    assert not any(value.any() for value in updates(start).values()), "an update that adds nothing"
    stage.cycle()
    before, generator, fake = ended(stage)
    mean = {name: value.lerp(updates(generator)[name], SHARE) for name, value in updates(before).items()}
    apart = updates({name: before[name] - generator[name] for name in before})
    close(updates(fake), {name: mean[name] - SHARE * (1 - SHARE) * apart[name] for name in mean}, tolerance=1e-6)
    missed = sum(float((updates(fake)[name] - mean[name]).square().sum()) for name in mean)
    changed = sum(float((mean[name] - updates(before)[name]).square().sum()) for name in mean)
    assert 0 < (missed / changed) ** 0.5 < 0.02


def turned(after: tuple[str, ...], *, part: int = 0) -> tuple[list[Tensor], Roles]:
    """The fake score's weights before its turn, and the roles after it; the generator lies one above it."""
    roles = toy_roles(Flow(), PLANE, [even_grid(2)], updates=0, objective=TDM(), sampler="ode")
    with torch.no_grad():
        for parameter in roles["generator"].parameters():
            parameter += 1
    before = [p.clone() for p in roles["fake_score"].parameters()]
    batch = toy_batch(PLANE, 2, *streams().values())
    batch.after, batch.part = after, part
    TDM(stabilisers=Stabilisers(follow=SHARE)).fake_score(roles, batch)
    return before, roles


def check_what_follows() -> None:
    """The network by its share; embeddings, which the generator has none of, and the generator stay."""
    before, roles = turned(("generator",))
    fake, generator = roles.network("fake_score"), roles.network("generator")
    own = len([*fake.embeddings.parameters()])
    assert own
    close(
        [p - q for p, q in zip(fake.own.parameters(), before[: len(before) - own], strict=True)],
        [torch.full_like(p, SHARE) for p in fake.own.parameters()],
    )
    close([*fake.embeddings.parameters()], before[len(before) - own :], tolerance=0.0)
    close(
        [p - q for p, q in zip(generator.own.parameters(), fake.own.parameters(), strict=True)],
        [torch.full_like(p, 1 - SHARE) for p in generator.own.parameters()],
    )


def check_when() -> None:
    """After the generator's turn alone, in the first of its micro-batches."""
    for after, part in (((), 0), (("fake_score",), 0), (("generator",), 1)):
        before, roles = turned(after, part=part)
        close([*roles["fake_score"].parameters()], before, tolerance=0.0)


def test_what_follows():
    check_what_follows()


def test_when():
    check_when()


def wrongly(right: bool, part: bool) -> object:
    """Following in other turns, or other parts, than it should."""
    return lambda self, roles, batch: (right or batch.after) and (part or not batch.part) and follow(roles, batch, 0.25)


MUTANTS = {
    "the other share": (
        (stabilisers, "moved", lambda mine, theirs, share, rng: moved(mine, theirs, 1 - share)),
        check_what_follows,
    ),
    "the generator follows": (
        (stabilisers, "moved", lambda mine, theirs, share, rng: moved(theirs, mine, share)),
        check_what_follows,
    ),
    "in every fake turn": ((Stabilisers, "before_fake_score", wrongly(True, False)), check_when),
    "for every micro-batch": ((Stabilisers, "before_fake_score", wrongly(False, True)), check_when),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants(name: str, monkeypatch: pytest.MonkeyPatch):
    wrong, check = MUTANTS[name]
    monkeypatch.setattr(*wrong)
    with pytest.raises(AssertionError):
        check()


def test_another_form_is_refused():
    roles = toy_roles(Flow(), PLANE, [even_grid(1)], updates=0)
    roles.members["generator"] = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="its own form alone"):
        follow(roles, toy_batch(PLANE, 2, *streams().values()), 0.5)


@pytest.mark.parametrize("held", ["bf16", "split"])
def test_half_weights_follow_by_less_than_they_can_tell_apart(held: masters.Masters):
    """3 % of the way from 1 to 1.05: exactly where the rest is kept beside, otherwise in the mean of many."""
    net = torch.nn.Linear(64, 64)
    with torch.no_grad():
        net.weight.fill_(1.0)
    net = halve(net, held, torch.float32)
    moved([net.weight], [torch.full((64, 64), 1.05)], 0.03, rng=torch.Generator().manual_seed(0))
    (value,) = masters.values_of([net.weight])
    close(value.mean(), torch.tensor(1.0015), tolerance=1e-6 if held == "split" else 2e-4)
