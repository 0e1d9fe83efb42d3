"""Nothing that an objective does in a turn waits for the device."""

from dataclasses import replace

import pytest
import torch
from closed_forms import PLANE, streams
from waits import DEVICE, DeviceStream, HostWaits, Unwaiting

from fastgen.models.conditioning import sent
from fastgen.objectives import OBJECTIVES, Objective, Pair
from fastgen.objectives.distribution.f_distill import FDistill
from fastgen.objectives.distribution.tdm import TDM
from fastgen.objectives.parts.anchors import Diversity, Segments
from fastgen.objectives.parts.curricula import Doubling, Even, Root
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.guidance_laws import Shared
from fastgen.objectives.parts.stabilisers import Stabilisers
from fastgen.objectives.trajectory.consistency import ConsistencyDistillation, ConsistencyTraining
from fastgen.objectives.trajectory.self_shortcut import SelfShortcut
from fastgen.process import Discrete, Flow, even_grid
from fastgen.proofs.toy import toy_batch, toy_roles

pytestmark = pytest.mark.usefixtures("unchecked")

VP = Discrete(torch.linspace(0.9991, 0.0047, 1000, dtype=torch.float64))
SETTINGS = {
    "gan on segments": TDM(gan=GAN()),
    "paired gan": FDistill(gan=GAN(r1=1.0, approximate_r1=1.0, paired="times"), guidance=Shared(1.0, 3.0)),
    "stabilisers": TDM(stabilisers=Stabilisers(0.03, 0.1, True, segments=Segments(), diversity=Diversity())),
    "even curriculum": ConsistencyDistillation(curriculum=Even()),
    "root curriculum": ConsistencyDistillation(curriculum=Root()),
    "doubling curriculum": ConsistencyTraining(curriculum=Doubling()),
    "hardly taught": SelfShortcut(taught=0.01),
}


def unwaiting_turns(objective: Objective) -> None:
    """Each turn twice: the first call may measure what a network can do."""
    needs = objective.needs
    process = Flow() if needs.process == "flow" else VP
    grids = [even_grid(2), even_grid(4)]
    roles = toy_roles(process, PLANE, grids, updates=0, objective=objective, sampler=needs.sampler or "renoise")
    with Unwaiting([]):  # a process sends its tables to each device once
        process.alpha(torch.rand(1, device=DEVICE))
    tables = process._tables(torch.device("cpu")) if isinstance(process, Discrete) else ()
    for again in (False, True):
        for turn in dict.fromkeys(objective.cycle):
            batch = replace(toy_batch(PLANE, 8, **streams()), rng=DeviceStream(), after=("generator",))
            batch.pairs = Pair(batch.noise(), batch.noise()) if needs.pairs else None
            batch.changed = batch.cond if needs.context else None
            with roles.training(turn):
                if not again:
                    getattr(objective, turn[0])(roles, batch)
                    continue
                with Unwaiting([*grids, *tables]):
                    terms = getattr(objective, turn[0])(roles, batch)
                    torch.stack(list(terms.values())).sum().backward()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_turn_of_an_objective_waits_for_the_device(name: str):
    unwaiting_turns(OBJECTIVES[name]())


@pytest.mark.parametrize("name", SETTINGS)
def test_no_turn_waits_under_other_settings(name: str):
    unwaiting_turns(SETTINGS[name])


def test_who_waits_is_noticed():
    grid, rng = even_grid(4), torch.Generator()
    with Unwaiting([grid]):
        assert 0 < float(grid[int(torch.randint(4, (), generator=rng, device=rng.device))]) <= 1  # the host's own
        assert torch.cat([grid, torch.zeros(1)]).unique().tolist()
        x = torch.rand(4, device=DEVICE)
        assert x[sent(torch.arange(2), x.device)].shape == (2,)
        waits = {
            "item": lambda: x.sum().item(),
            "truth": lambda: bool(x.any()),
            "mask": lambda: x[x > 0],
            "list": lambda: x.tolist(),
            "size": lambda: x.unique(),
            "draw": lambda: torch.multinomial(x, 1),
            "index": lambda: grid[int(torch.randint(4, (), generator=DeviceStream()))],
            "upload": lambda: grid.to(DEVICE),
            "upload as another": lambda: grid.to(x),
            "upload of data": lambda: torch.tensor([1.0], device=x.device),
            "both": lambda: grid * x,
            "sent": lambda: (sent(grid, x.device) * x)[0].item(),
        }
        for wait in waits.values():
            with pytest.raises(HostWaits):
                wait()
