"""The border between networks and the algebra: calls, guidance and taps."""

import copy
from types import SimpleNamespace

import pytest
import torch
from rounding import assert_alike
from torch import Tensor, nn
from towers import NOTHING, PLANE, PROCESSES, VP, Answer, T, Tower, network

from fastgen.models.conditioning import Conditioning
from fastgen.models.denoiser import CallForm, NetworkDenoiser
from fastgen.process import EDM, ROWS, Prediction, Process, Reading, from_scheduler
from fastgen.proofs.analytic import ExactDenoiser

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
