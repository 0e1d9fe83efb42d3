"""Heads in the place of a network's last layer: told, fused into weights, and taken in turn by a stock pipeline."""

import pytest
import tiny
import torch
from families import FAMILIES
from replaying import Replaying
from torch import Tensor, nn

from fastgen.errors import UserError
from fastgen.models.adapted import AdaptedDenoiser
from fastgen.models.adapters import Adaptation, SharedNetwork, alias
from fastgen.models.baking import fused
from fastgen.models.head_bank import HEADS, Headed, Intervals, ends_with_heads, last_linear, steps_of, swapped
from fastgen.models.merging import merged
from fastgen.models.pipelines.heads import StepHeads, check_callback
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.walk import sample, scalars_at
from fastgen.process import even_grid

GRIDS = [even_grid(2), even_grid(1), even_grid(4)]
RANK, ALPHA = 4, 6


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def intervals(pipeline: Pipeline, count: int = 8) -> Intervals:
    return Intervals.of(pipeline.reading.process, torch.linspace(1, 0, count + 1, dtype=torch.float64))


def learned(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    nn.init.normal_(model.embeddings.offsets, std=0.1)
    for parameter in model.own.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return model


def whole(pipeline: Pipeline) -> nn.Module:
    return learned(pipeline.speaking(alias(pipeline.network).requires_grad_(False), heads=intervals(pipeline)))


def adapted(pipeline: Pipeline, *, rank: int = RANK, targets: list[str] | None = None) -> nn.Module:
    shared = SharedNetwork(alias(pipeline.network), ["generator"], Adaptation(rank, ALPHA, targets))
    speaking = pipeline.speaking(shared.net)
    return learned(AdaptedDenoiser(speaking, shared, "generator", heads=intervals(pipeline)))


def cond(pipeline: Pipeline, rows: int = 3):
    return pipeline.condition(rows, labels=torch.arange(rows))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_pretrained_network_says_what_it_said_before(pipeline):
    model = pipeline.speaking(alias(pipeline.network), heads=intervals(pipeline))
    x, t = torch.randn(3, *pipeline.shape), torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64)
    plain = pipeline.speaking(pipeline.network)(x, t, cond(pipeline)).x0
    close(model(x, t, cond(pipeline), {"r": t, "s": 0 * t}).x0, plain)
    close(model(x, t, cond(pipeline)).x0, plain)


@pytest.mark.parametrize("make", [whole, adapted])
def test_a_replayed_call_speaks_of_its_own_run(pipeline, make):
    model, x, t = make(pipeline), torch.randn(3, *pipeline.shape), torch.full((3,), 0.7, dtype=torch.float64)
    runs = [{"r": torch.full_like(t, r), "s": torch.full_like(t, s)} for r, s in ((1.0, 0.5), (0.5, 0.0))]
    expected = [model(x, t, cond(pipeline), told).x0 for told in runs]
    denoiser = model._denoiser if make is adapted else model
    denoiser.graphs = Replaying()
    for told, said in zip(runs, expected, strict=True):
        close(model(x, t, cond(pipeline), told).x0, said)
    assert len(denoiser.graphs.functions) == 1
    assert not torch.allclose(*expected)


@pytest.mark.parametrize("make", [whole, adapted])
def test_each_row_has_the_last_weight_of_its_own_run(pipeline, make):
    model = make(pipeline)
    x, t = torch.randn(3, *pipeline.shape), torch.full((3,), 0.7, dtype=torch.float64)
    told = {"r": torch.tensor([1.0, 0.5, 0.25]).double(), "s": torch.tensor([0.5, 0.0, 0.125]).double()}
    said = model(x, t, cond(pipeline), told).x0
    layer = model.net.get_submodule("conv_out")
    for row in range(3):
        one = {name: value[[row]] for name, value in told.items()}
        with swapped(layer, layer.weight + model.embeddings(one)[0]):
            close(model(x, t, cond(pipeline)).x0[row], said[row])


@pytest.mark.parametrize("make", [whole, adapted])
def test_fused_heads_sample_at_every_step_count_as_the_told_generator(pipeline, make):
    model = make(pipeline)
    left = fused(model, model.own.state_dict(), GRIDS)
    state = {name: value for name, value in left.items() if not name.startswith(HEADS)}
    if make is adapted:
        net = merged(pipeline.network, state, alpha=ALPHA)
    else:
        net = alias(pipeline.network)
        net.load_state_dict(state, assign=True)
    plain, noise = pipeline.speaking(net), torch.randn(3, *pipeline.shape)
    own = net.conv_out.weight.detach().clone()
    for grid in GRIDS:
        times = grid.tolist()
        told = scalars_at(times, ("r", "s"), sampler="ode", guidance=None)
        theirs = sample(model, lambda: noise, cond(pipeline), times, sampler="ode", scalars=told)
        alone = sample(plain, lambda: noise, cond(pipeline), times, sampler="ode")
        if len(grid) == 1:
            close(alone, theirs)
            continue
        headed = Headed(plain, dict(zip(times, own + left[f"{HEADS}{len(times)}"], strict=True)))
        close(sample(headed, lambda: noise, cond(pipeline), times, sampler="ode"), theirs)
        assert (alone - theirs).abs().max() > 1e-2, "the heads make no difference"
    assert torch.equal(net.conv_out.weight, own)


def test_the_one_step_of_a_student_is_in_its_weights_and_nowhere_else(pipeline):
    left = fused(whole(pipeline), pipeline.network.state_dict(), [even_grid(1)])
    assert left.keys() == pipeline.network.state_dict().keys()


@pytest.mark.parametrize(("rank", "targets"), [(2, None), (RANK, ["conv_out", "conv1"])])
def test_an_adapter_that_cannot_hold_a_head_is_refused(pipeline, rank, targets):
    model = adapted(pipeline, rank=rank, targets=targets)
    with pytest.raises(UserError, match=r"update of conv_out, of rank 3: lora.rank must be at least 3"):
        fused(model, model.own.state_dict(), GRIDS)


def test_half_of_a_run_is_refused(pipeline):
    x, t = torch.randn(3, *pipeline.shape), torch.full((3,), 0.7, dtype=torch.float64)
    with pytest.raises(ValueError, match="r and s, not s"):
        whole(pipeline)(x, t, cond(pipeline), {"s": t})
    with pytest.raises(ValueError, match="no embedding for w"):
        whole(pipeline)(x, t, cond(pipeline), {"w": t})


class Curved(nn.Module):
    """A network that goes on behind its last linear layer, or mixes samples there."""

    def __init__(self, net: nn.Module, behind: object) -> None:
        super().__init__()
        self.net, self.behind, self.config = net, behind, net.config

    def forward(self, *args: object, **kwargs: object) -> tuple[Tensor]:
        return (self.behind(self.net(*args, **kwargs).sample),)


@pytest.mark.parametrize(
    ("behind", "last"),
    [(lambda y: y, True), (torch.tanh, False), (lambda y: y.flip(0), False), (torch.zeros_like, False)],
)
def test_heads_have_to_come_last_and_row_by_row(pipeline, behind, last):
    model = pipeline.speaking(Curved(alias(pipeline.network), behind), heads=intervals(pipeline, 2))
    assert ends_with_heads(model, pipeline.shape, cond(pipeline, 2)) == last


def test_a_stock_pipeline_takes_the_heads_of_the_step_count_that_it_is_called_with(tmp_path):
    pipe = FAMILIES["stable_diffusion"].build()
    own = pipe.unet.conv_out.weight.detach().clone()
    StepHeads("unet.conv_out", {2: torch.stack([own + 1, own + 2])}).write(tmp_path)
    StepHeads.read(tmp_path).put_on(pipe)
    used: list[Tensor] = []
    pipe.unet.register_forward_hook(lambda unet, args, output: used.append(unet.conv_out.weight.clone()))
    call = {"prompt": "a", "height": 16, "width": 16, "output_type": "latent", "guidance_scale": 1.0}
    for steps, offsets in ((2, [1, 2]), (2, [1, 2]), (1, [0]), (3, [0, 0, 0])):
        used.clear()
        pipe(**call, num_inference_steps=steps)
        assert len(used) == steps
        for weight, offset in zip(used, offsets, strict=True):
            torch.testing.assert_close(weight, own + offset)
    assert torch.equal(pipe.unet.conv_out.weight, own)
    assert StepHeads.read(tmp_path / "elsewhere") is None
    assert StepHeads.read(tmp_path).of([1]) is None
    assert StepHeads.read(tmp_path).of([1, 2]).weights.keys() == {2}


def test_a_call_that_lets_nobody_change_the_layer_is_refused():
    check_callback(FAMILIES["stable_diffusion"].build())
    with pytest.raises(
        UserError, match=r"ConsistencyModelPipeline takes no callback_on_step_end.*\(student.steps=\[1\]\)"
    ):
        check_callback(tiny.class_conditional())


def test_a_run_has_at_least_the_interval_that_begins_it(pipeline):
    known = intervals(pipeline, 4)
    steps = steps_of(even_grid(2))
    assert known.shares(**steps).gt(0).tolist() == [[True, True, False, False], [False, False, True, True]]
    close(known.shares(**steps).sum(dim=1), torch.ones(2, dtype=torch.float64))
    t = torch.tensor([1.0, 0.0]).double()
    assert known.shares(t, t).tolist() == [[1, 0, 0, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("kind", "name"),
    [("stable_diffusion", "conv_out"), ("sd3", "proj_out"), ("flux", "proj_out"), ("sana", "proj_out")],
)
def test_the_last_layer_of_a_family(kind, name):
    pipe = FAMILIES[kind].build()
    assert last_linear(getattr(pipe, "unet", None) or pipe.transformer) == name
