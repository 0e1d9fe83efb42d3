"""A student's network of another architecture than its teacher's: what it starts as, and what cannot take its place."""

import re
from pathlib import Path

import pytest
import tiny
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from encoded import save
from families_video import wan_of_two
from safetensors.torch import load_file, save_file
from torch import nn

from fastgen.errors import UserError
from fastgen.models.experts import Experts
from fastgen.models.pipelines.components import network_of
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.student_network import NetworkSource, alike, check_called_alike

NARROW = {"block_out_channels": [4, 8], "norm_num_groups": 2}


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A narrow network, saved."""
    torch.manual_seed(7)
    network = UNet2DModel.from_config({**tiny.unet(num_class_embeds=tiny.CLASSES + 1).config, **NARROW})
    network.save_pretrained(tmp_path / "narrow")
    return tmp_path / "narrow"


def same(ours: nn.Module, theirs: dict[str, torch.Tensor]) -> bool:
    own = ours.state_dict()
    return own.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in own.items())


def test_layers_that_agree_start_as_the_teachers_and_others_are_drawn():
    teacher = network_of(tiny.dit(layers=3))
    source = NetworkSource(settings={"num_layers": 2})
    network = source.built(teacher, seed=1)
    assert isinstance(network, DiTTransformer2DModel)
    assert len(network.transformer_blocks) == 2
    theirs = teacher.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert len(alike(network, teacher)) == len(network.state_dict()) < len(theirs)

    narrow = NetworkSource(settings={"attention_head_dim": 4})
    one, again, other = (narrow.built(teacher, seed=seed) for seed in (1, 1, 2))
    assert same(one, again.state_dict())
    assert not same(one, other.state_dict())
    kept = alike(one, teacher)
    assert 0 < len(kept) < len(one.state_dict())
    assert all(torch.equal(one.state_dict()[name], theirs[name]) for name in kept)


def test_a_teacher_in_half_precision_is_copied_into_float32():
    teacher = network_of(tiny.dit(layers=2)).to(torch.bfloat16)
    network = NetworkSource(settings={"num_layers": 1}).built(teacher, seed=0)
    theirs = teacher.state_dict()
    assert all(torch.equal(value, theirs[name].float()) for name, value in network.state_dict().items())
    assert {value.dtype for value in network.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("form", ["network", "pipeline", "variant"])
def test_a_folder_with_weights_is_what_a_network_starts_as(form: str, folder: Path, pipeline: Pipeline):
    weights = load_file(folder / "diffusion_pytorch_model.safetensors")
    if form == "pipeline":
        pipe = pipeline.student(UNet2DModel.from_pretrained(folder), pipeline.pipe.scheduler)
        pipe.save_pretrained(folder := folder.with_name("pipe"))
    if form == "variant":
        (folder / "diffusion_pytorch_model.safetensors").rename(folder / "diffusion_pytorch_model.fp16.safetensors")
    source = NetworkSource(folder)
    network = source.built(pipeline.network, seed=0)
    assert same(network, weights)
    assert source.has_weights
    assert [file.suffix for file in source.files] == [".json", ".safetensors"]
    check_called_alike(network, pipeline)


def test_a_folder_without_weights_says_what_settings_say(folder: Path, pipeline: Pipeline):
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    source, settings = NetworkSource(folder), NetworkSource(settings=NARROW)
    assert not source.has_weights
    assert same(source.built(pipeline.network, seed=3), settings.built(pipeline.network, seed=3).state_dict())


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "pruned.safetensors"])
def test_weights_that_are_not_read_are_not_taken_for_none(name: str, folder: Path, pipeline: Pipeline):
    (folder / "diffusion_pytorch_model.safetensors").rename(folder / name)
    with pytest.raises(UserError, match=re.escape(f"the weights in {folder / name} are not read")):
        NetworkSource(folder).outline(pipeline.network)


def test_an_outline_has_no_weights_and_the_same_shapes(pipeline: Pipeline):
    source = NetworkSource(settings=NARROW)
    with torch.device("meta"):
        outline = source.outline(pipeline.network)
    assert all(value.is_meta for value in outline.state_dict().values())
    built = source.built(pipeline.network, seed=0).state_dict()
    assert {name: value.shape for name, value in outline.state_dict().items()} == {k: v.shape for k, v in built.items()}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"block_out_chanels": [4, 8]}, "UNet2DModel has no setting 'block_out_chanels'; did you mean"),
        ({"block_out_channels": [4, 8, 16]}, "student.network.settings: UNet2DModel does not take this config"),
        ({"norm_num_groups": 3}, "UNet2DModel does not take this config"),
    ],
)
def test_settings_of_no_network_are_refused(settings: dict, said: str, pipeline: Pipeline):
    with pytest.raises(UserError, match=re.escape(said)):
        NetworkSource(settings=settings).outline(pipeline.network)


def test_folders_of_no_such_network_are_refused(folder: Path, pipeline: Pipeline):
    def refused(path: Path, said: str) -> None:
        with pytest.raises(UserError, match=re.escape(said)):
            NetworkSource(path).built(pipeline.network, seed=0)

    refused(folder / "nowhere", f"{folder / 'nowhere'} is no folder of a network or of a pipeline: give one that")
    other = folder.with_name("other")
    network_of(tiny.dit()).save_pretrained(other)
    refused(other, f"{other} holds a DiTTransformer2DModel, and the teacher's pipeline calls a UNet2DModel")
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file({**load_file(file), "conv_out.bias": torch.zeros(5)}, file)
    refused(folder, "has weights of another network than its config.json says")
    file.write_bytes(file.read_bytes()[:100])
    refused(folder, f"{file} is damaged")
    save(folder / "config.json", "{")
    refused(folder, "config.json is damaged")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sample_size": 4}, "its samples would be [3, 4, 4], not [3, 8, 8]: give it the teacher's"),
        ({"in_channels": 1, "out_channels": 1}, "its samples would be [1, 8, 8], not [3, 8, 8]"),
        ({"out_channels": 6}, "the self-test failed"),
        ({"num_class_embeds": 10}, "reach label 10, but the ConsistencyModelPipeline has embeddings for 0 to 9"),
        ({"num_class_embeds": None}, "its conditions would be none, not ['class_labels']"),
    ],
)
def test_a_network_that_is_called_otherwise_is_refused_by_what_differs(settings: dict, said: str, pipeline: Pipeline):
    network = NetworkSource(settings={**NARROW, **settings}).built(pipeline.network, seed=0)
    with pytest.raises(UserError, match=re.escape(said)) as refused:
        check_called_alike(network, pipeline)
    assert str(refused.value).startswith("student.network cannot take the place of the teacher's network: ")


@pytest.mark.parametrize(
    ("build", "settings", "wrong", "said"),
    [
        (tiny.dit, {"attention_head_dim": 4}, {"out_channels": 4}, "its channels of the output would be all, not 4"),
        (tiny.stable_diffusion, NARROW, {"cross_attention_dim": 16}, "the self-test failed"),
        (tiny.stable_diffusion, NARROW, {"time_cond_proj_dim": 8}, "its conditions would be ['encoder_hidden_states',"),
    ],
)
def test_pipelines_of_other_kinds_have_networks_of_other_architectures(build, settings: dict, wrong: dict, said: str):
    pipeline = Pipeline(build())
    good, bad = (
        NetworkSource(settings=told).built(pipeline.network, seed=0) for told in (settings, {**settings, **wrong})
    )
    check_called_alike(good, pipeline)
    assert pipeline.start is pipeline.network
    other = pipeline.starting_from(good)
    assert (other.start, other.network) == (good, pipeline.network)
    with pytest.raises(UserError, match=re.escape(said)):
        check_called_alike(bad, pipeline)


def test_two_denoisers_have_two_networks_of_another_architecture(tmp_path: Path):
    pipe = wan_of_two()
    pipe.save_pretrained(tmp_path / "two")
    teacher = network_of(pipe)
    network = NetworkSource(settings={"ffn_dim": 8}).built(teacher, seed=0)
    assert isinstance(network, Experts)
    assert network.boundary == teacher.boundary
    assert {part.config["ffn_dim"] for part in (network.high, network.low)} == {8}
    theirs = teacher.state_dict()
    assert all(torch.equal(network.state_dict()[name], theirs[name]) for name in alike(network, teacher))
    assert {name.partition(".")[0] for name in alike(network, teacher)} == {"high", "low"}
    assert same(NetworkSource(tmp_path / "two").built(teacher, seed=0), theirs)
    with pytest.raises(UserError, match="no folder of a network or of a pipeline with 2 denoisers"):
        NetworkSource(tmp_path / "two/transformer").built(teacher, seed=0)


@pytest.mark.parametrize("bare", ["transformer", "transformer_2"])
def test_two_denoisers_of_which_one_has_no_weights_are_refused(bare: str, tmp_path: Path):
    pipe = wan_of_two()
    pipe.save_pretrained(tmp_path / "two")
    teacher = network_of(pipe)
    for file in (tmp_path / "two" / bare).glob("*.safetensors"):
        file.unlink()
    source = NetworkSource(tmp_path / "two")
    for made in (source.outline, lambda teacher: source.built(teacher, seed=0)):
        with pytest.raises(UserError, match=f"weights of one denoiser, but none in {tmp_path / 'two' / bare}: copy"):
            made(teacher)
    other = "transformer_2" if bare == "transformer" else "transformer"
    for file in (tmp_path / "two" / other).glob("*.safetensors"):
        file.unlink()
    assert not source.has_weights
    assert same(source.built(teacher, seed=0), teacher.state_dict())
