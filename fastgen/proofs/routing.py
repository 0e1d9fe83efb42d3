"""Proof 2: a turn's gradients reach exactly its roles, and the objective reads only what it declares."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import nn

from ..models.roles import Roles
from ..objectives import Objective, Turn, roles_of
from ..process import even_grid
from .bed import DATA, PROCESSES, Bed, batch_for, bed_of, sampler_of, seeded
from .check import Check
from .toy import toy_denoiser, toy_roles_of

LEARNED = ("fake_score", "discriminator")
"""Roles that mean nothing before they are trained."""


@dataclass
class Calls:
    """The roles that a turn called, and those it called with a graph from the generator."""

    made: set[str] = field(default_factory=set)
    through: set[str] = field(default_factory=set)


def routing_checks(objective: Objective, process: str, *, steps: int) -> list[Check]:
    """One check per turn, and one of what is read."""
    bed = bed_of(objective, process)
    roles, calls, checks = fresh_roles(objective, bed, steps=steps), Calls(), []
    for turn in dict.fromkeys(objective.cycle):
        with recorded(roles, calls):
            checks.append(_turn(objective, roles, turn, bed))
    return [*checks, _declared(objective, calls), _read(calls)]


def fresh_roles(objective: Objective, bed: Bed, *, steps: int) -> Roles:
    """Untrained roles for an objective on a bed."""
    torch.manual_seed(0)
    network = toy_denoiser(PROCESSES[bed.process], DATA[bed.data])
    grids = [even_grid(steps), even_grid(2 * steps)]
    return toy_roles_of(network, bed.real, grids, objective=objective, sampler=sampler_of(objective))


@contextmanager
def recorded(roles: Roles, calls: Calls) -> Iterator[None]:
    """Within, calls of the roles are noted."""

    def noting(name: str) -> object:
        def note(_module: nn.Module, args: tuple[object, ...]) -> None:
            calls.made.add(name)
            if torch.is_grad_enabled() and args and isinstance(args[0], torch.Tensor) and args[0].requires_grad:
                calls.through.add(name)

        return note

    hooks = [roles[name].register_forward_pre_hook(noting(name)) for name in roles.members]  # type: ignore[arg-type]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _turn(objective: Objective, roles: Roles, turn: Turn, bed: Bed) -> Check:
    """Checks whose parameters have gradients after a turn's backward pass."""
    name = f"routing: turn {' + '.join(turn)}"
    batch = batch_for(objective, bed, 16, seeded(0), seeded(1))
    with roles.training(turn):
        terms = getattr(objective, turn[0])(roles, batch)
        wrong = [term for term, value in terms.items() if value.ndim or not value.isfinite()]
        if wrong:
            return Check(name, False, f"not a finite number: {', '.join(wrong)}")
        loss = torch.stack(list(terms.values())).sum()
        if loss.requires_grad:
            loss.backward()
    missed, leaked = [], []
    for role in roles.members:
        reached = [parameter.grad is not None for parameter in roles.parameters(role)]
        missed += [role] if role in turn and not all(reached) else []
        leaked += [role] if role not in turn and any(reached) else []
        roles[role].zero_grad()
    figures = [f"{', '.join(missed)} without gradient"] * bool(missed)
    figures += [f"gradients leak into {', '.join(leaked)}"] * bool(leaked)
    values = ", ".join(f"{term} {float(value.detach()):.3g}" for term, value in terms.items())
    return Check(name, not figures, "; ".join(figures) or f"gradients stay there; {values}")


def _declared(objective: Objective, calls: Calls) -> Check:
    """A score that is read has to be trained, or to be asked for."""
    idle = [role for role in LEARNED if role in calls.made and role not in roles_of(objective)]
    remedies = [f'it reads {role}, which no turn trains: add ("{role}",) to its cycle' for role in idle]
    if "real_score" in calls.made and not objective.needs.real_score:
        remedies.append("it reads real_score: set real_score=True in its needs")
    return Check("routing: reads what it declares", not remedies, "; ".join(remedies) or ", ".join(sorted(calls.made)))


def _read(calls: Calls) -> Check:
    """Tells the reader which scores are differentiated through; always holds."""
    scores = sorted(calls.made - {"generator"})
    told = [f"{role} {'with' if role in calls.through else 'without'} the graph to x_t" for role in scores]
    return Check("routing: scores", True, ", ".join(told) or "none")
