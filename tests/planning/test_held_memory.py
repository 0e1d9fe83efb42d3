"""What lies in a card's memory all the time: the plan's bytes are those that the same stage allocates on the CPU."""

from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from benchmarks.networks import SIZES
from benchmarks.predicted import scene_of
from benchmarks.trio import Setting, stage_on
from fastgen.engine import stepper
from fastgen.engine.rules import Kernel, Pass
from fastgen.engine.stage import Stage
from fastgen.models.masters import low_of
from fastgen.models.offload import bytes_with_swap
from fastgen.models.recordable import Actor
from fastgen.models.rewards import Rewards
from fastgen.models.sharding import bytes_together
from fastgen.planning import meter as meters
from fastgen.planning.card import NOWHERE, module_bytes, on_card
from fastgen.planning.held import Held, Part
from fastgen.planning.meter import Meter
from fastgen.planning.pools import Pools

LINEAR = 4 * (16 * 16 + 16)  # bytes of a layer


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch):
    """Bytes are not rounded up."""
    monkeypatch.setattr(meters, "BLOCK", 1)


def held(**settings: Any) -> Held:
    scene = scene_of("tiny", Setting(rank=2, batch=2, fake_turns=1, guidance=1.0, **settings))
    with on_card(scene.meter):
        return Held(scene.config, scene.stage, scene.pipeline, scene.roles, scene.meter)


def parts(found: Held) -> dict[str, Part]:
    with on_card(found.meter):
        return {part.name: part for part in found.parts()}


def size(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def allocated(**settings: Any) -> dict[str, int]:
    """The same, of a stage that has trained for a cycle."""
    setting = Setting(rank=2, batch=2, fake_turns=1, guidance=1.0, **settings)
    stage = stage_on(SIZES["tiny"], setting, Stage, Accelerator(cpu=True))
    stage.cycle()
    found = {"teacher's network": module_bytes(stage.feed.pipeline.network)}
    for role, optimizer in stage.optimizers.items():
        lows = [low for p in optimizer.parameters if (low := low_of(p)) is not None]
        found[f"{role}: weights"] = size([*optimizer.parameters, *lows])
        states = optimizer.optimizer.state.values()
        found[f"{role}: moments"] = size([value for state in states for value in state.values()])
    if setting.ema_device == "auto":
        found["generator: average"] = size(list(stage.ema.averages.values()))
    return found


FULL = {"sharing": "full", "checkpointing": False}
SETTINGS: list[dict[str, Any]] = [
    {**FULL, "masters": "split", "ema_device": "cpu"},
    {**FULL, "optimizer": "adamw8bit", "masters": "bf16", "gradients": "bf16", "gan": True},
    {"optimizer": "adamw8bit"},
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_the_plan_s_bytes_are_those_that_a_stage_allocates(settings: dict[str, Any]):
    found, expected = parts(held(**settings)), allocated(**settings)
    assert {name: found[name].bytes for name in expected} == expected
    assert found.keys() - expected.keys() <= {"copies that layers compute with"}


def test_little_memory_holds_two_blocks_and_the_moments_of_the_roles_that_act():
    ample, low = (parts(held(memory=memory, gan=True, optimizer="adamw")) for memory in ("ample", "low"))
    acting = "fake_score+discriminator: moments"
    assert ample.keys() - low.keys() == {f"{role}: moments" for role in ("generator", "fake_score", "discriminator")}
    assert low[acting].bytes == ample["fake_score: moments"].bytes + ample["discriminator: moments"].bytes
    assert low["teacher's network"].bytes < 0.7 * ample["teacher's network"].bytes


def test_blocks_are_counted_where_they_are_swapped_and_where_they_lie_in_slices():
    blocks = nn.ModuleList([nn.Linear(16, 16) for _ in range(5)])
    net = nn.ModuleDict({"first": nn.Linear(16, 16), "blocks": blocks})
    assert bytes_with_swap(net) == LINEAR + 2 * LINEAR + 3 * 4 * 16, "biases stay"
    assert bytes_together(net) == LINEAR + 2 * LINEAR


def test_networks_that_see_and_score_samples_have_lines_of_their_own():
    found = held()
    with on_card(found.meter):
        clip, judge = nn.Linear(1024, 512, device=NOWHERE), nn.Linear(1024, 1024, device=NOWHERE)
        scorers = {"clip": clip, "bright": lambda images, asked: images.mean((1, 2, 3))}
        rewards = Rewards(lambda x0: x0, scorers, [1.0, 1.0], {"judge": judge})
        found.roles.members["rewards"] = rewards.to(NOWHERE)
    told = {name: part.bytes for name, part in parts(found).items() if part.name.startswith(("rewards", "copies"))}
    assert told == {"rewards: clip": 4 * 1025 * 512, "rewards: judge": 4 * 1025 * 1024}, "none are layers' copies"
    assert not parts(found)["rewards: clip"].sliced


def test_adapters_stay_whole_where_networks_lie_in_slices():
    lora = held(gan=True)
    lora.stage = lora.stage.model_copy(update={"train": lora.stage.train.model_copy(update={"sharding": "full"})})
    found = parts(lora)
    sliced = {name for name, part in found.items() if part.sliced}
    assert sliced == {"teacher's network", "discriminator: weights", "discriminator: moments"}
    assert found["blocks brought together"].bytes > 0
    assert lora.shared_by(("fake_score", "discriminator")) == lora.optimizers["discriminator"].gradients
    full = held(sharing="full")
    assert all(part.sliced for part in parts(full).values())


@pytest.mark.parametrize(
    ("optimizer", "least", "most"),
    [("adamw", 0, 0.1), ("adamw8bit", 0, 0.1), pytest.param("muon", 1, 20, marks=pytest.mark.slow)],
)
def test_what_an_update_computes_with_is_counted(optimizer: str, least: float, most: float):
    """A card's kernel of AdamW makes no copies; Muon makes them there too."""
    found = held(optimizer=optimizer)
    parts(found)
    values = sum(p.numel() for p in found.optimizers["generator"].parameters)
    assert least * 4 * values <= found.updates["generator"] <= most * 4 * values


@pytest.mark.parametrize("dense", [True, False])
def test_a_plan_s_update_allocates_what_the_kernel_does(dense: bool):
    """The kernel itself, interpreted where there is no GPU, has but tables of addresses more."""
    kernels = pytest.importorskip("fastgen.engine.kernels")
    if torch.cuda.is_available():
        pytest.skip("Triton compiles where there is a GPU")

    def peak(step: Kernel, device: torch.device) -> int:
        weight = nn.Parameter(torch.ones(96, 64, dtype=torch.bfloat16, device=device))
        gradient = torch.ones((96, 64) if dense else (64, 96), dtype=torch.bfloat16, device=device)
        weight.grad = gradient if dense else gradient.t()
        state = {"step": torch.zeros((), device=device), "exp_avg_sq": torch.zeros(96, 64, device=device)}
        settings = {"lr": 0.1, "betas": (0.0, 0.99), "eps": 1e-8, "weight_decay": 0.0}
        update = Pass(settings, seed=0, numbers=[0], blocked=torch.zeros((), device=device))
        with Meter() as meter:
            step([weight], [state], update)
        return meter.peak

    with on_card(Meter()):
        stand_in = stepper.kernel_on(NOWHERE)
        assert stand_in is not None
        planned = peak(stand_in, NOWHERE)
    assert planned == (0 if dense else 2 * 96 * 64)
    assert planned <= peak(kernels.step, torch.device("cpu")) <= planned + 512


def test_graphs_keep_pools_and_places():
    layer = nn.Linear(16, 16, device=NOWHERE)
    weights = tuple(layer.parameters())
    rows = 64 * 16 * 4  # bytes of a sample

    def twice(told: Any) -> Tensor:
        return layer(layer(told["x"]).sigmoid())  # three times its rows, of which the first go before the last come

    with Meter() as meter:
        pools = Pools(meter)
        actor = Actor("layer", layer, weights, weights, twice)
        x = torch.empty(64, 16, device=NOWHERE)
        for _ in range(3):  # of one kind
            pools.begin()
            with torch.no_grad():
                pools.call(actor, {"x": x})
        assert pools.bytes == 2 * rows + 2 * rows, "a pool, and what goes in and out"
        for _ in range(2):
            pools.begin()
            held = [pools.call(actor, {"x": x}) for _ in range(2)]
            assert all(output.requires_grad for output in held)
        assert pools.left == 2 * 2 * rows, "of each call the activation and what it returns"
        pools_and_places = 4 * rows + 2 * 2 * rows + 2 * 2 * 2 * rows
        assert pools.bytes == pools_and_places, "of two that wait, the gradients of what goes in and out too"
        pools.backward(5)
        pools.backward(3)
        assert pools.bytes == pools_and_places + 5
