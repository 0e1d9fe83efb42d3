"""A two-dimensional test bed: small learned denoisers beside exact ones, on any process."""

import copy
from functools import partial

import torch
from torch import Tensor, nn

from ..models.conditioning import Conditioning, sent
from ..models.denoiser import CallForm, NetworkDenoiser
from ..models.discriminator import Discriminator, FeatureDiscriminator
from ..models.image_part import Example
from ..models.own_backbone import OwnDiscriminator
from ..models.pixel_discriminator import PixelDiscriminator
from ..models.rewards import Rewards
from ..models.roles import Roles
from ..models.state import STATES
from ..models.walk import Plan, Sampler
from ..objectives import Batch, Needs, Objective, denoisers_of
from ..objectives.parts.flow_map import intervals_of
from ..process import Process, Reading, Uniform
from ..process.prediction import edm_row
from .analytic import ExactDenoiser, Mixture


class Perceptron(nn.Module):
    """Points [B, d], a noise angle [B] and class labels [B] (-1 is none) -> [B, d]."""

    def __init__(self, dim: int, *, classes: int = 0, width: int = 96) -> None:
        super().__init__()
        self.embed = nn.Embedding(classes + 1, width)
        nn.init.zeros_(self.embed.weight)
        self.enter = nn.Linear(dim, width)
        self.time_embedding = nn.Linear(8, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.leave = nn.Linear(width, dim)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        waves = timestep[:, None] * torch.arange(1, 5, device=timestep.device)
        h = self.enter(sample) + self.time_embedding(torch.cat([waves.sin(), waves.cos()], dim=1))
        h = torch.nn.functional.silu(h + self.embed(class_labels + 1))
        for layer in self.hidden:
            h = h + torch.nn.functional.silu(layer(h))
        left: Tensor = self.leave(h)
        return left


def toy_denoiser(process: Process, data: Mixture) -> NetworkDenoiser:
    """An untrained perceptron with EDM's preconditioning, whose timestep is the noise angle in [0, pi/2]."""
    scale = float((data.means.square().sum(1) + data.covariances.diagonal(dim1=1, dim2=2).sum(1)).mean().sqrt())
    sigma_data = scale / data.means.shape[1] ** 0.5
    reading = Reading(
        process,
        partial(edm_row, sigma_data=sigma_data),
        timestep=lambda t: torch.atan2(process.sigma(t), process.alpha(t) * sigma_data),
        time=lambda u: process.time_of(-2 * torch.log(sigma_data * torch.tan(u))),
        input_scale=lambda t: 1 / torch.hypot(process.sigma(t), process.alpha(t) * sigma_data),
    )
    net = Perceptron(data.means.shape[1], classes=data.num_classes)
    return NetworkDenoiser(net, reading, CallForm())


def imitate(student: NetworkDenoiser, teacher: ExactDenoiser, *, updates: int, batch: int, seed: int) -> None:
    """Regresses the exact denoiser, with classes and without, in place."""
    rng = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(student.parameters(), lr=2e-3)
    for i in range(updates):
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - i / updates)
        labels = torch.randint(-1, teacher.data.num_classes, (batch,), generator=rng)
        known = labels.clamp(min=0)
        x0 = teacher.data.sample(batch, rng, labels=known).float()
        t = Uniform().sample(teacher.process, batch, rng)
        x_t = teacher.process.renoise(x0, t, torch.randn(x0.shape, generator=rng))
        cond = Conditioning(batch, {"class_labels": labels})
        with torch.no_grad():
            wanted = teacher(x_t, t, cond)
        row = student.reading.row
        (student(x_t, t, cond).output(row) - wanted.output(row)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def toy_roles(
    process: Process,
    data: Mixture,
    grids: list[Tensor],
    *,
    objective: Objective | None = None,
    updates: int = 600,
    seed: int = 0,
    sampler: Sampler = "renoise",
) -> Roles:
    """Exact real score; generator, fake score and target start from one learned imitation of it.

    They have the embeddings that the objective asks for, and its states stand beside them.
    """
    torch.manual_seed(seed)
    real = ExactDenoiser(process, data)
    learned = toy_denoiser(process, data)
    imitate(learned, real, updates=updates, batch=512, seed=seed)
    return toy_roles_of(learned, real, grids, objective=objective, sampler=sampler)


def toy_roles_of(
    learned: NetworkDenoiser,
    real: ExactDenoiser,
    grids: list[Tensor],
    *,
    objective: Objective | None = None,
    sampler: Sampler = "renoise",
) -> Roles:
    """`toy_roles` from an imitation that is there already; it is copied. To rewards all samples are worth the same."""
    needs = objective.needs if objective is not None else Needs()
    heads = intervals_of(grids, learned.process, needs.heads) if needs.heads else None
    denoisers = {
        role: NetworkDenoiser(
            copy.deepcopy(learned.net),
            learned.reading,
            learned.form,
            scalars=needs.scalars_of(role),
            heads=heads if role == "generator" else None,
        )
        for role in ("generator", "fake_score", "target", *["coach"] * needs.coach)
    }
    x = torch.zeros(2, real.data.means.shape[1])
    example = (x, torch.full((2,), 0.5, dtype=torch.float64), real.data.uncond(2))
    members: dict[str, nn.Module] = {
        **denoisers,
        "real_score": real,
        "discriminator": judge_of(objective, denoisers["fake_score"], example),
    }
    members |= {name: STATES[name]() for name in needs.states}
    members |= {"rewards": indifferent()} if needs.rewards else {}
    judge = members["discriminator"]
    frozen = {"discriminator": judge.unread} if isinstance(judge, OwnDiscriminator) else {}
    return Roles(members, Plan(grids, sampler=sampler), frozen=frozen)


def judge_of(objective: Objective | None, learned: NetworkDenoiser, example: Example) -> FeatureDiscriminator:
    """Heads on the fake score, on sides of points, or where neither is read or jumps are, on a copy that learns too."""
    if objective is not None and objective.needs.pixels:
        return PixelDiscriminator(lambda x: x, sides, example)
    if objective is not None and objective.needs.jumps:
        return OwnDiscriminator(copy.deepcopy(learned), ["hidden.1"], example, width=2)
    if objective is not None and denoisers_of(objective) == ("generator",):
        return OwnDiscriminator(copy.deepcopy(learned), ["hidden.1"], example)
    return Discriminator(learned, ["hidden.1"], example)


def sides(points: Tensor) -> list[Tensor]:
    """What a vision model would see of points [B, d]: on which sides of 64 random lines, as one token [B, 1, 64]."""
    rng = torch.Generator().manual_seed(0)
    lines = torch.randn(points.shape[1], 64, generator=rng), torch.randn(64, generator=rng)
    axes, offsets = (sent(line.to(points.dtype), points.device) for line in lines)
    return [torch.tanh(2 * (points @ axes + offsets))[:, None]]


def indifferent() -> Rewards:
    """Rewards under which every point is worth nothing."""
    return Rewards(lambda x: x, {"none": lambda points, _: 0 * points.flatten(1).sum(dim=1)}, [1.0])


def toy_batch(data: Mixture, size: int, rng: torch.Generator, shared_rng: torch.Generator) -> Batch:
    """Real samples with their classes."""
    labels = torch.randint(data.num_classes, (size,), generator=rng)
    x0 = data.sample(size, rng, labels=labels).float()
    return Batch(data.cond(labels), tuple(x0.shape[1:]), rng, shared_rng, real=x0)


def sliced_wasserstein(a: Tensor, b: Tensor, *, directions: int = 128, seed: int = 0) -> float:
    """Mean over random directions of the 1-D Wasserstein-2 distance between two samples [N, d] of equal size."""
    rng = torch.Generator().manual_seed(seed)
    axes = torch.randn(a.shape[1], directions, generator=rng, dtype=torch.float64)
    axes = axes / axes.norm(dim=0)
    gap = (a.double() @ axes).sort(dim=0).values - (b.double() @ axes).sort(dim=0).values
    return float(gap.square().mean(dim=0).sqrt().mean())
