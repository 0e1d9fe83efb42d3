"""What steadies a matching of scores, on exact Gaussians."""

import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    OTHER_FACTOR,
    OTHER_MEAN,
    REAL,
    close,
    gaussian_roles,
    only,
    quasi_random,
    scripted,
)
from torch import Tensor, nn

from fastgen.models.roles import Roles
from fastgen.models.walk import Plan, Sampler
from fastgen.objectives import DMD2
from fastgen.objectives.parts.anchors import Diversity, Segments
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.solvers import Guidance, landing_on
from fastgen.objectives.parts.stabilisers import Stabilisers
from fastgen.process import Flow, Prediction, Process, even_grid
from fastgen.proofs.analytic import AffineGenerator, ExactDenoiser, Mixture
from fastgen.proofs.gaussians import exact_student

SHARE = 0.5
GENERATED = Mixture(OTHER_MEAN[None], (OTHER_FACTOR @ OTHER_FACTOR.T)[None])
BOTH = Mixture(
    torch.stack([OTHER_MEAN, MEAN]),
    torch.stack([OTHER_FACTOR @ OTHER_FACTOR.T, COVARIANCE]),
    weights=torch.tensor([1, SHARE]) / (1 + SHARE),
)


def plain(**stabilisers: object) -> DMD2:
    return DMD2(gan=GAN(0.0), times=only(0.5), fake_times=only(0.5), stabilisers=Stabilisers(**stabilisers))


class Nudged(nn.Module):
    """An exact denoiser to which an affine map of x_t may be added, at first nothing."""

    scalars: tuple[str, ...] = ()

    def __init__(self, exact: ExactDenoiser) -> None:
        super().__init__()
        self.exact, self.process = exact, exact.process
        self.slope, self.shift = nn.Parameter(torch.zeros(2, 2).double()), nn.Parameter(torch.zeros(2).double())

    def forward(self, x_t, t, cond, scalars=None):
        x0 = self.exact(x_t, t, cond).x0 + x_t @ self.slope + self.shift
        return Prediction.of_x0(self.process, x_t, t, x0)


def pull_on_the_fake_score(law: Mixture, *, real: float) -> Tensor:
    """The slope [6] of its loss by affine changes of a belief in that law."""
    fake = Nudged(ExactDenoiser(Flow(), law))
    roles = gaussian_roles(Flow(), fake_score=fake)
    z, eps = quasi_random(2)
    data = MEAN + z @ torch.linalg.cholesky(COVARIANCE).T
    with roles.training(("fake_score",)):
        terms = plain(real=real).fake_score(roles, scripted(z, eps, eps, real=data))
        slopes = torch.autograd.grad(torch.stack(list(terms.values())).sum(), [fake.slope, fake.shift])
    return torch.cat([slope.flatten() for slope in slopes])


def check_real_samples_are_believed_in_by_their_weight() -> None:
    """The loss rests at the mixture of generated and real samples, and without the term at the former."""
    for law, other, real in ((BOTH, GENERATED, SHARE), (GENERATED, BOTH, 0.0)):
        rest, away = (float(pull_on_the_fake_score(one, real=real).norm()) for one in (law, other))
        assert rest < 0.05 * away, f"{rest:.1e}, elsewhere {away:.1e}"


def check_that_shrinks_the_direction_where_data_are_likely() -> None:
    """fake - real is q / (q + w p) of itself at each x_t."""
    t, x_t = torch.full((64,), 0.4).double(), 2 * quasi_random(2, 64)[0]
    cond = REAL.uncond(64)
    both, generated, real = (ExactDenoiser(Flow(), law) for law in (BOTH, GENERATED, REAL))
    ratio = (real.log_prob(x_t, t, cond) - generated.log_prob(x_t, t, cond)).exp()[:, None]
    gap = generated(x_t, t, cond).x0 - real(x_t, t, cond).x0
    close(both(x_t, t, cond).x0 - real(x_t, t, cond).x0, gap / (1 + SHARE * ratio))


class ExactSteps(nn.Module):
    """A student each of whose steps is the teacher's exact flow to the next of its edges, from anywhere between two."""

    scalars: tuple[str, ...] = ()

    def __init__(self, process: Process, edges: Tensor) -> None:
        super().__init__()
        self.process, self.edges, self.teacher = process, edges, ExactDenoiser(process, REAL)

    def forward(self, x_t, t, cond, scalars=None):
        end = self.edges[(self.edges[None] >= t[:, None] - 1e-9).sum(dim=1)]
        return landing_on(self.process, x_t, t, self.teacher.flow_map(x_t, t, end, cond), end)


def segment_term(process: Process, student: nn.Module, segments: Segments, *, seed: int = 0) -> float:
    """Of a student of two steps, at one of them."""
    roles = gaussian_roles(process, generator=student)
    roles = Roles(roles.members, Plan([even_grid(2)], sampler="ode"))
    noises = [torch.randn(64, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)] * 2
    return float(segments.terms(roles, scripted(*noises, seed=seed))["segment"])


def check_exact_steps_have_nothing_to_learn_within(process: Process) -> None:
    """By an exact solver; by one Euler step they would be moved away from where they are right."""
    exact = ExactSteps(process, torch.cat([even_grid(2), torch.zeros(1)]).double())
    others = AffineGenerator(process, MEAN, torch.eye(2))
    for seed in (0, 1):  # the first step and the second
        fine = segment_term(process, exact, Segments(substeps=16), seed=seed)
        assert fine < 0.05 * segment_term(process, others, Segments(substeps=16), seed=seed)
        assert fine < 0.2 * segment_term(process, exact, Segments(solver="ddim"), seed=seed)


def check_the_segments_term_by_hand() -> None:
    """One step of m + F z on a flow, met halfway: the teacher arrives at (z + mean) / 2, and the student goes on.

    So the gap is F (z - mean) / 2, and a target that learned too would leave no slope by m.
    """
    z, _ = quasi_random(2, 64)
    roles = gaussian_roles(Flow())
    segments = Segments(weight=0.7, solver="ddim", margin=0.5 - 1e-9, huber=0.1)
    gap = (z - MEAN) @ OTHER_FACTOR.T / 2
    length = (gap.square() + 0.01).sqrt()
    generator = roles["generator"]
    with roles.training(("generator",)):
        term = segments.terms(roles, scripted(z))["segment"]
        slope, factor = torch.autograd.grad(term, [generator.mean, generator.factor])
    close(term.detach(), 0.7 * (length - 0.1).mean())
    close(slope, 0.7 * (gap / length).mean(dim=0) / 2)
    close(factor, 0.7 * (gap / length).T @ z / len(z) / 2)


def check_the_segments_teacher_is_guided() -> None:
    """At w = 3 of the two classes' mixture elsewhere than at 1."""
    classes = Mixture(torch.stack([MEAN, MEAN + 1]), COVARIANCE.expand(2, 2, 2), labels=torch.tensor([0, 1]))
    roles = gaussian_roles(Flow(), real_score=ExactDenoiser(Flow(), classes))
    found = {}
    for w in (1.0, 3.0):
        batch = scripted(quasi_random(2, 64)[0])
        batch.cond = classes.cond(torch.zeros(64, dtype=torch.long))
        segments = Segments(weight=1.0, solver="ddim", teacher_guidance=Guidance(w, w))
        found[w] = float(segments.terms(roles, batch)["segment"])
    assert found[3.0] - found[1.0] > 0.05


def check_the_first_step_is_the_teachers_mean_velocity() -> None:
    """|v - v_teacher|^2 of the whole trajectory: of a student that is the exact flow nothing is left."""
    diversity = Diversity(weight=0.5, anchor=60, grid=60)
    left = {}
    for name, student in {"exact": exact_student(Flow()), "other": AffineGenerator(Flow(), MEAN, torch.eye(2))}.items():
        roles = gaussian_roles(Flow(), generator=student)
        left[name] = float(diversity.terms(roles, scripted(quasi_random(2, 128)[0]))["diversity"].detach())
    spread = torch.linalg.eigvalsh(COVARIANCE).sqrt()
    close(torch.tensor(left["other"]), (0.5 * (1 - spread).square().mean()).float(), tolerance=0.02)
    assert left["exact"] < 0.01 * left["other"]


class OfSteps(nn.Module):
    """A generator with weights of its own at each stop of an even grid, and between two those of the upper."""

    scalars: tuple[str, ...] = ()

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.process = Flow()
        self.steps = nn.ModuleList(AffineGenerator(self.process, MEAN + i, torch.eye(2)) for i in range(steps))

    def forward(self, x_t, t, cond, scalars=None):
        return self.steps[int(len(self.steps) * (1 - float(t[0])) + 1e-6)](x_t, t, cond)


def reached(objective: DMD2, term: str, *, sampler: Sampler = "renoise") -> list[bool]:
    """Of three steps, which a term ever has a slope by."""
    student = OfSteps(3)
    roles = Roles(gaussian_roles(Flow(), generator=student).members, Plan([even_grid(3)], sampler=sampler))
    for seed in range(12):
        noises = torch.randn(9, 8, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with roles.training(("generator",)):
            objective.generator(roles, scripted(*noises, seed=seed))[term].backward()
    return [bool(part.mean.grad is not None and part.mean.grad.any()) for part in student.steps]


SKIPPING = plain(skip=True, diversity=Diversity())


def check_the_first_step_is_not_matched() -> None:
    """It learns by the teacher's trajectory alone, and that alone."""
    assert reached(plain(), "dm") == [True, True, True]
    assert reached(SKIPPING, "dm", sampler="ode") == [False, True, True]
    assert reached(SKIPPING, "diversity", sampler="ode") == [True, False, False]


def check_the_fake_score_learns_of_what_is_matched() -> None:
    """Clean samples of other steps than the first."""
    roles = Roles(gaussian_roles(Flow(), generator=OfSteps(3)).members, Plan([even_grid(3)], sampler="ode"))
    for seed in range(12):
        batch = scripted(*torch.zeros(9, 4, 2).double(), seed=seed)
        SKIPPING.fake_score(roles, batch)
        assert float(batch.landing.t[0]) < 0.9
