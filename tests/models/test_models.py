"""The border between networks and the algebra: calls, taps, retargeting, heads and roles."""

import copy
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from rounding import assert_alike
from torch import Tensor, nn

from fastgen.errors import UserError
from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser, RetargetedDenoiser
from fastgen.models.discriminator import Discriminator, default_layers
from fastgen.models.roles import Roles
from fastgen.models.walk import Plan
from fastgen.process import EDM, ROWS, Discrete, Flow, Prediction, Process, Reading, Trig, from_scheduler
from fastgen.proofs.analytic import ExactDenoiser, Mixture

VP = from_scheduler(DDIMScheduler()).process
PROCESSES: dict[str, Process] = {"vp": VP, "flow": Flow(), "edm": EDM(), "trig": Trig()}
NOTHING = Conditioning(3)
T = torch.tensor([0.25, 0.5, 0.9], dtype=torch.float64)
PLANE = Mixture(
    torch.tensor([[1.0, 0.0], [-0.5, 1.0]]),
    torch.tensor([[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]]),
    labels=torch.tensor([0, 1]),
)


class Answer(nn.Module):
    """Says what it is told to say and remembers the question."""

    def __init__(self, answer: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.answer = answer

    def forward(self, **told: object) -> object:
        self.told = told
        return self.answer


class Tower(nn.Module):
    """Four layers that run in `order`; `calls` lists which ones ran."""

    def __init__(self, width: int = 4, order: tuple[int, ...] = (0, 1, 2, 3)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(4))
        self.order = order
        self.calls: list[int] = []

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = sample
        for i in self.order:
            self.calls.append(i)
            h = torch.tanh(self.layers[i](h)) + timestep[:, None].to(h.dtype) / 1000
        return h


def network(net: nn.Module, process: Process = VP, row: str = "eps", **form: object) -> NetworkDenoiser:
    reading = Reading(process, ROWS[row], process.clock, process.from_clock)
    return NetworkDenoiser(net, reading, CallForm(**form))


# NetworkDenoiser


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("row", ["x0", "eps", "v", "flow", "edm"])
def test_a_network_is_read_by_its_row_and_sign(process: Process, row: str):
    x0, eps = torch.randn(2, 3, 2, 4, 4)
    x_t = process.renoise(x0, T, eps)
    truth = Prediction(process, T, x0, eps)
    answer = -torch.cat([truth.output(ROWS[row]), torch.randn(3, 2, 4, 4)], dim=1)
    belief = network(Answer(answer), process, row, sign=-1.0, channels=2)(x_t, T, NOTHING)
    torch.testing.assert_close(belief.x0, x0, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(belief.eps, eps, rtol=1e-3, atol=2e-3)


def test_the_network_is_told_its_own_names_and_timestep():
    net = Answer(torch.zeros(3, 4))
    x_t = torch.randn(3, 4)
    denoiser = network(net, sample="hidden_states", timestep="t", slope=-0.5, offset=500.0)
    denoiser(x_t, T, Conditioning(3, {"class_labels": torch.arange(3)}, {"scale": 2}))
    assert set(net.told) == {"hidden_states", "t", "class_labels", "scale"}
    assert torch.equal(net.told["hidden_states"], x_t)
    assert net.told["t"].dtype == torch.float32
    torch.testing.assert_close(net.told["t"], torch.tensor([375.5, 250.5, 50.5]))


def test_the_input_is_scaled_for_the_network_only():
    net = Answer(torch.zeros(3, 4))
    process = EDM()
    reading = Reading(
        process,
        ROWS["edm"],
        process.clock,
        process.from_clock,
        input_scale=lambda t: 1 / (1 + process.sigma(t)),
    )
    x0, eps = torch.randn(2, 3, 4)
    x_t = process.renoise(x0, T, eps)
    net.answer = Prediction(process, T, x0, eps).output(ROWS["edm"])
    belief = NetworkDenoiser(net, reading, CallForm())(x_t, T, NOTHING)
    torch.testing.assert_close(net.told["sample"], (x_t / (1 + process.sigma(T)[:, None])).float())
    torch.testing.assert_close(belief.x0, x0, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: (x, 1), lambda x: SimpleNamespace(sample=x)])
def test_tensors_tuples_and_diffusers_outputs_are_read(wrap):
    eps = torch.randn(3, 4)
    torch.testing.assert_close(network(Answer(wrap(eps)))(torch.randn(3, 4), T, NOTHING).eps, eps)


@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16])
def test_low_precision_stays_inside(own: torch.dtype):
    tower = Tower().to(own)
    seen = []
    tower.layers[0].register_forward_hook(lambda _module, _args, output: seen.append(output.dtype))
    denoiser = network(tower)
    if own == torch.float32:
        denoiser = NetworkDenoiser(tower, denoiser.reading, CallForm(), autocast=torch.bfloat16)
    belief = denoiser(torch.randn(3, 4), T, NOTHING)
    assert seen == [torch.bfloat16]
    assert belief.x0.dtype == belief.eps.dtype == torch.float32


def test_denoisers_stay_in_eval_mode():
    denoiser = network(nn.Sequential(nn.Dropout(0.5)).train())
    holder = nn.ModuleList([denoiser]).train()
    assert holder.training
    assert not any(module.training for module in denoiser.modules())


@pytest.mark.parametrize("name", ["s", "w"])
def test_undeclared_embeddings_are_refused(name: str):
    for denoiser in (network(Answer(None)), ExactDenoiser(VP, PLANE)):
        with pytest.raises(ValueError, match=f"no embedding for {name}"):
            denoiser(torch.randn(3, 2), T, PLANE.uncond(3), {name: T})


def test_guidance_is_diffusers_convention():
    denoiser = network(Answer(None))
    cond, null = (Prediction(VP, T, *torch.randn(2, 3, 4)) for _ in range(2))
    torch.testing.assert_close(denoiser.guide(cond, null, 4.0).eps, null.eps + 4 * (cond.eps - null.eps))
    per_row = denoiser.guide(cond, null, torch.tensor([0.0, 1.0, 2.0])).x0
    torch.testing.assert_close(per_row, torch.stack([null.x0[0], cond.x0[1], 2 * cond.x0[2] - null.x0[2]]))


# Taps


def full_pass(tower: Tower, x_t: Tensor) -> dict[str, Tensor]:
    """The outputs of every layer in one plain forward pass."""
    seen = {}
    for name, layer in tower.layers.named_children():
        layer.register_forward_hook(lambda _m, _a, output, name=name: seen.__setitem__(f"layers.{name}", output))
    network(tower)(x_t, T, NOTHING)
    return seen


@pytest.mark.parametrize("wanted", [("layers.1",), ("layers.0", "layers.2"), ("layers.2", "layers.0")])
def test_taps_are_the_features_of_a_full_forward_and_stop_early(wanted: tuple[str, ...]):
    tower, x_t = Tower(), torch.randn(3, 4)
    expected = full_pass(copy.deepcopy(tower), x_t)
    features = network(tower).tap(x_t, T, NOTHING, wanted)
    for feature, name in zip(features, wanted, strict=True):
        assert_alike(feature, expected[name])
    assert tower.calls == list(range(1 + max(int(name[-1]) for name in wanted)))


def test_taps_wait_for_the_layer_that_runs_last_not_the_one_named_last():
    tower = Tower(order=(2, 0, 1, 3))
    network(tower).tap(torch.randn(3, 4), T, NOTHING, ["layers.0", "layers.2"])
    assert tower.calls == [2, 0]


def test_taps_leave_nothing_behind():
    tower, x_t = Tower(), torch.randn(3, 4)
    denoiser = network(tower)
    before = denoiser(x_t, T, NOTHING).eps
    denoiser.tap(x_t, T, NOTHING, ["layers.1"])
    tower.calls.clear()
    assert torch.equal(denoiser(x_t, T, NOTHING).eps, before)
    assert tower.calls == [0, 1, 2, 3]
    assert not any(layer._forward_hooks for layer in tower.layers)


def test_gradients_flow_through_a_tap_to_x_t():
    tower = Tower().requires_grad_(False)
    x_t = torch.randn(3, 4, requires_grad=True)
    (feature,) = network(tower).tap(x_t, T, NOTHING, ["layers.1"])
    (slope,) = torch.autograd.grad(feature[1].sum(), x_t)
    assert slope[1].abs().sum() > 0
    assert slope[[0, 2]].abs().sum() == 0


def test_an_error_inside_a_network_is_not_swallowed():
    with pytest.raises(RuntimeError):
        network(Tower()).tap(torch.randn(3, 5), T, NOTHING, ["layers.3"])


# RetargetedDenoiser


class ExactNetwork(nn.Module):
    """The optimal eps network of a mixture, called with a step index."""

    def __init__(self, process: Discrete, data: Mixture) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.exact = ExactDenoiser(process, data)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        t = self.exact.process.from_clock(timestep)
        return self.exact(sample, t, Conditioning(len(sample), {"class_labels": class_labels})).eps


@pytest.mark.parametrize("name", ["flow", "trig", "edm"])
def test_a_ddpm_network_spoken_to_in_another_process_is_exact(name: str):
    process = PROCESSES[name]
    inner = network(ExactNetwork(VP, PLANE))
    t = torch.linspace(0.4, 0.7, 8, dtype=torch.float64)
    x0, eps = torch.randn(2, 8, 2, dtype=torch.float64)
    x_t = process.renoise(x0, t, eps)
    cond = PLANE.cond(torch.arange(8) % 2)
    ours, exact = (
        RetargetedDenoiser(inner, process)(x_t, t, cond),
        ExactDenoiser(process, PLANE)(x_t, t, cond),
    )
    torch.testing.assert_close(ours.x0, exact.x0, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.eps, exact.eps, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.at(t), x_t, rtol=1e-5, atol=1e-5)


def test_equal_noise_levels_give_equal_beliefs():
    flow, inner = Flow(), network(Tower())
    x0, eps = torch.randn(2, 3, 4)
    seen = flow.retarget(VP, T)
    ours = RetargetedDenoiser(inner, flow)(flow.renoise(x0, T, eps), T, NOTHING)
    theirs = inner(VP.renoise(x0, seen.t, eps), seen.t, NOTHING)
    torch.testing.assert_close(ours.x0, theirs.x0, rtol=1e-4, atol=1e-4)
    features = (
        RetargetedDenoiser(inner, flow).tap(flow.renoise(x0, T, eps), T, NOTHING, ["layers.1"]),
        inner.tap(VP.renoise(x0, seen.t, eps), seen.t, NOTHING, ["layers.1"]),
    )
    torch.testing.assert_close(*features, rtol=1e-4, atol=1e-4)


# Discriminator


class Shapes(nn.Module):
    """One layer for each rank of feature that networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(3, 6, 3, padding=1)
        self.tokens = nn.Linear(6, 5)
        self.vector = nn.Linear(5, 7)
        self.video = nn.Conv3d(6, 4, 1)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        h = self.map(sample)
        tokens = self.tokens(h.flatten(2).transpose(1, 2))
        self.vector(tokens.mean(dim=1))
        self.video(torch.stack([h, h + timestep.reshape(-1, 1, 1, 1)], dim=2))
        return sample


LAYERS = ("map", "tokens", "vector", "video")


def discriminator(size: int = 16, **options: str) -> tuple[Discriminator, NetworkDenoiser, tuple]:
    backbone = network(Shapes())
    example = (torch.randn(3, 3, size, size), T, NOTHING)
    return Discriminator(backbone, LAYERS, example, **options), backbone, example


@pytest.mark.parametrize("size", [3, 4, 6, 16])
def test_there_is_one_logit_per_layer_zero_at_first(size: int):
    judge, _, example = discriminator(size)
    assert torch.equal(judge(*example), torch.zeros(3, 4))


def test_every_head_learns_and_the_backbone_is_not_its_own():
    judge, backbone, example = discriminator()
    own = {id(parameter) for parameter in judge.parameters()}
    assert own.isdisjoint(id(parameter) for parameter in backbone.parameters())
    backbone.requires_grad_(False)
    nn.init.normal_(judge.heads[3].frame.logit.weight)
    for head in (judge.heads[0], judge.heads[1], judge.heads[2]):
        nn.init.normal_(head.logit.weight)
    x_t = example[0].requires_grad_()
    logits = judge(x_t, *example[1:])
    for column in range(4):
        (slope,) = torch.autograd.grad(logits[1, column], x_t, retain_graph=True)
        assert slope[1].abs().sum() > 0
        assert slope[[0, 2]].abs().sum() == 0
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in judge.parameters())
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_the_ratio_is_the_mean_logit_of_a_logistic_discriminator():
    judge, _, example = discriminator()
    nn.init.ones_(judge.heads[0].logit.bias)
    torch.testing.assert_close(judge.ratio(*example), torch.full((3,), 0.25))


def test_default_layers_are_the_bottleneck_or_the_middle():
    tower, example = Tower(), (torch.randn(3, 4), T, NOTHING)
    assert default_layers(tower, network(tower), example) == ("layers.2",)
    tower.mid_block = nn.Identity()
    assert default_layers(tower, network(tower), example) == ("mid_block",)
    with pytest.raises(UserError, match=r"name discriminator\.layers"):
        default_layers(Shapes(), network(Shapes()), (torch.randn(3, 3, 4, 4), T, NOTHING))


# Roles


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


# A stock network


def test_a_stock_unet_is_a_denoiser():
    pipeline = pytest.importorskip("tiny").class_conditional()
    denoiser = NetworkDenoiser(pipeline.unet, from_scheduler(pipeline.scheduler), CallForm())
    x_t, labels = torch.randn(3, 3, 8, 8), torch.tensor([0, 4, 10])
    with torch.no_grad():
        belief = denoiser(x_t, T, Conditioning(3, {"class_labels": labels}))
        (feature,) = denoiser.tap(x_t, T, Conditioning(3, {"class_labels": labels}), ["mid_block"])
        told = pipeline.unet(x_t, 1000 * T.float() - 1, class_labels=labels).sample
    torch.testing.assert_close(belief.output(ROWS["v"]), told, rtol=1e-4, atol=1e-4)
    assert feature.shape == (3, 16, 4, 4)
