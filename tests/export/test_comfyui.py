"""A ComfyUI workflow beside a LoRA: joined nodes, and sigmas that are the stops as ComfyUI counts them."""

import json

import pytest
import torch
from exporting import adapted, student_of
from families import FAMILIES
from huggingface_hub import ModelCard

from fastgen.export.comfyui import FILE, sigma_of
from fastgen.export.lora import export_lora, known_keys
from fastgen.models.pipelines.components import network_of
from fastgen.models.pipelines.stacked import FILES
from fastgen.models.targets import find_targets


@pytest.fixture(scope="module", params=[("stable_diffusion", "renoise"), ("sdxl", "ode"), ("flux", "ode")])
def exported(request, tmp_path_factory):
    """A LoRA's folder with the student that it is of."""
    name, sampler = request.param
    pipe = FAMILIES[name].build()
    _, adapter = adapted(pipe)
    student = student_of(pipe, (2,), sampler, FAMILIES[name].size, teacher="owner/name", hub=True)
    keys = known_keys(pipe, find_targets(network_of(pipe)))
    place = tmp_path_factory.mktemp(name) / "lora"
    return export_lora(pipe, adapter, student.notes, place, student.schedules, keys=keys), student


def test_every_input_of_a_node_is_another_nodes_output_and_the_lora_is_the_file(exported):
    folder, _ = exported
    nodes = json.loads((folder / FILE).read_text())
    links = [value for node in nodes.values() for value in node["inputs"].values() if isinstance(value, list)]
    assert links
    assert {node for node, _ in links} <= nodes.keys()
    lora = next(node for node in nodes.values() if node["class_type"] == "LoraLoaderModelOnly")
    assert (folder / lora["inputs"]["lora_name"]).is_file()
    assert lora["inputs"]["lora_name"] == FILES["kohya"]
    sampler = next(node["inputs"] for node in nodes.values() if node["class_type"] == "SamplerCustom")
    assert sampler["cfg"] == 1.0
    assert FILE in (folder / "README.md").read_text()


def test_sigmas_lead_to_the_times_that_were_trained(exported):
    folder, student = exported
    nodes = json.loads((folder / FILE).read_text()).values()
    told = next(node["inputs"]["sigmas"] for node in nodes if node["class_type"] == "ManualSigmas")
    *sigmas, last = map(float, told.split(","))
    stops = student.notes.stops[2]
    assert (len(sigmas), last) == (2, 0.0)
    assert sigmas == pytest.approx([sigma_of(stop) for stop in stops], rel=1e-5)
    alphas = getattr(student.pipe.scheduler, "alphas_cumprod", None)
    if alphas is None:
        assert [1000 * sigma for sigma in sigmas] == pytest.approx([stop.timestep for stop in stops], rel=1e-4)
    else:  # ComfyUI's EPS: the nearest of the trained levels in log sigma
        levels = ((1 - alphas) / alphas).sqrt().log()
        nearest = [int((levels - torch.tensor(sigma).log()).abs().argmin()) for sigma in sigmas]
        assert nearest == [int(stop.timestep) for stop in stops]


def test_the_card_s_front_matter_relates_the_lora_to_its_base(exported):
    folder, student = exported
    data = ModelCard.load(folder / "README.md").data.to_dict()
    assert data["pipeline_tag"] == "text-to-image"
    assert (data["base_model"], data["base_model_relation"]) == ("owner/name", "adapter")
    assert {"lora", f"diffusers:{type(student.pipe).__name__}"} <= set(data["tags"])
