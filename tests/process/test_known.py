"""A level that many ask for is computed once, and is what it would be if it were computed at each asking."""

import gc
import weakref

import pytest
import torch
from closed_forms import PLANE
from torch import Tensor

from fastgen.models.calls import guided, look
from fastgen.models.retargeted import RetargetedDenoiser
from fastgen.objectives import DMD2
from fastgen.objectives.parts.gan import GAN, NO_GAN
from fastgen.objectives.parts.guidance_laws import Fixed
from fastgen.process import EDM, Discrete, Flow, Prediction, Process, Trig, even_grid, joined
from fastgen.process.known import once
from fastgen.process.prediction import ROWS, Coefficients
from fastgen.proofs.toy import toy_batch, toy_denoiser, toy_roles

STEPS = torch.linspace(0.9991, 0.0047, 1000, dtype=torch.float64)
PROCESSES = {"vp": Discrete(STEPS), "flow": Flow(), "edm": EDM(), "trig": Trig()}
processes = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


def times(count: int = 5) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def levels(process: Process, t: Tensor) -> list[Tensor]:
    """Alpha, sigma, log-SNR and clock."""
    return [process.alpha(t), process.sigma(t), process.logsnr(t), process.clock(t)]


@processes
def test_what_is_known_is_what_would_be_computed(process: Process):
    t, other = times(), 1 - times()
    first = levels(process, t)
    assert all(a is b for a, b in zip(first[:2], levels(process, t)[:2], strict=True))
    whole = joined([t, other, t])
    for known, fresh in zip(levels(process, whole), levels(process, whole.clone()), strict=True):
        assert torch.equal(known, fresh)


@processes
def test_times_that_are_written_to_are_other_times(process: Process):
    first, second = times(), 1 - times()
    whole = joined([first, second])
    for written in (first, whole):
        levels(process, whole)
        written.mul_(0.5)
        for asked in (first, whole):
            for known, fresh in zip(levels(process, asked), levels(process, asked.clone()), strict=True):
                assert torch.equal(known, fresh)


def test_a_level_that_was_written_to_is_computed_afresh():
    process, t = PROCESSES["vp"], times()
    process.alpha(t).zero_()
    assert torch.equal(process.alpha(t), process.alpha(t.clone()))


@processes
def test_times_that_are_differentiated_have_their_derivative(process: Process):
    t, other = times(), times()
    _, rate = torch.func.jvp(lambda u: process.sigma(u) * process.alpha(other), (t,), (torch.ones_like(t),))
    for asked in (t, other):  # nothing of the transform is left in what is known
        assert not torch._C._functorch.is_functorch_wrapped_tensor(process.alpha(asked))
        assert not torch._C._functorch.is_functorch_wrapped_tensor(process.sigma(asked))
    asked = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad((process.sigma(asked) * process.alpha(other)).sum(), asked)
    torch.testing.assert_close(rate, slope)
    assert rate.abs().min() > 0


@processes
def test_what_is_known_is_forgotten_with_the_times(process: Process):
    t = times()
    whole = joined([t, t])
    watched = [weakref.ref(x) for x in (t, whole, levels(process, t)[0], levels(process, whole)[0])]
    del t, whole
    gc.collect()
    assert [ref() for ref in watched] == [None] * 4


def test_times_that_are_their_own_level_are_forgotten_too():
    same = once(lambda speaker, t: t)
    t = times()
    assert same(None, t) is t
    watched = weakref.ref(t)
    del t
    gc.collect()
    assert watched() is None


@pytest.mark.parametrize("gan", [NO_GAN, GAN()], ids=["plain", "gan"])
def test_a_turn_computes_a_level_once_for_each_of_its_times(gan: GAN, monkeypatch: pytest.MonkeyPatch):
    """DMD2 asks some forty times a turn: at the time of the generator's call, and where samples are noised."""
    objective = DMD2(gan=gan, guidance=Fixed(3.0), rollout="one_step")
    roles = toy_roles(PROCESSES["vp"], PLANE, [even_grid(1)], updates=0, objective=objective)
    computed: list[Tensor] = []
    piece = Discrete._piece
    monkeypatch.setattr(Discrete, "_piece", lambda self, tables, u: computed.append(u) or piece(self, tables, u))
    streams = [torch.Generator().manual_seed(i) for i in range(2)]
    for turn, distinct in {"generator": 3 if gan.weight else 2, "fake_score": 4 if gan.weight else 2}.items():
        computed.clear()
        getattr(objective, turn)(roles, toy_batch(PLANE, 4, *streams))
        assert len(computed) == distinct, turn


@pytest.mark.parametrize("w", [1.0, 3.0])
def test_a_time_in_another_processs_terms_is_found_once(w: float, monkeypatch: pytest.MonkeyPatch):
    """However often a network that was retold is asked there, guided or not; it takes twenty steps of Newton's."""
    model = RetargetedDenoiser(toy_denoiser(PROCESSES["vp"], PLANE), Flow())
    found: list[Tensor] = []
    clock_of = Discrete._clock_of
    monkeypatch.setattr(Discrete, "_clock_of", lambda self, wanted: found.append(wanted) or clock_of(self, wanted))
    t, x_t, cond = times(), torch.randn(5, 2), PLANE.cond(torch.arange(5) % PLANE.num_classes)
    first, again = (guided(look, model, x_t, t, cond, w=w) for _ in range(2))
    assert len(found) == 1
    assert torch.equal(first.x0, again.x0)
    fresh = guided(look, model, x_t, t.clone(), cond, w=w)
    assert torch.equal(first.x0, fresh.x0)
    assert torch.equal(first.eps, fresh.eps)


@processes
@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_always_tells_the_noise_is_solved_as_one_that_may_not(process: Process, name: str):
    """Where it need not be asked whether an output says nothing of the noise, the same is found."""
    t = torch.tensor([0.0, 0.1, 0.5, 0.98], dtype=torch.float64)
    x_t, output = torch.randn(2, 4, 3, dtype=torch.float64)

    def careful(process: Process, t: Tensor) -> Coefficients:
        found = ROWS[name](process, t)
        return Coefficients(found.p, found.q)

    for one, other in zip(
        *(vars(Prediction.solve(process, x_t, t, output, row=row)).values() for row in (ROWS[name], careful)),
        strict=True,
    ):
        if isinstance(one, Tensor):
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
