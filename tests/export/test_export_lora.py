"""LoRA folders: what `load_lora_weights` makes of them is the trained generator."""

import copy
import re

import pytest
import torch
from diffusers import DiffusionPipeline
from exporting import adapted, student_of
from families import FAMILIES
from quick import some
from safetensors import safe_open
from safetensors.torch import load_file

from fastgen.errors import UserError
from fastgen.export.adapter import Adapter
from fastgen.export.lora import FILES, export_lora
from fastgen.export.rebuild import verify_lora
from fastgen.export.verify import Export, verify
from fastgen.models.pipelines.components import denoiser_name
from fastgen.models.pipelines.source import LoRAFile
from fastgen.models.pipelines.stacked import StackedLoRA, recorded


def outputs(pipe: DiffusionPipeline, size, net=None) -> torch.Tensor:
    """The last latents of two steps, with another denoiser where one is given."""
    used = copy.copy(pipe)
    if net is not None:
        used.register_modules(**{denoiser_name(pipe): net})
    call = {"prompt": ["a"], "num_inference_steps": 2, "output_type": "latent", **size}
    return used(**call, generator=torch.Generator().manual_seed(0))[0]


def close(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / ours.abs().max())


def exported(tmp_path, family, steps=(2,), sampler="ode", keys=("diffusers",), **settings):
    pipe = family.build()
    net, adapter = adapted(pipe, **settings)
    student = student_of(pipe, steps, sampler, family.size)
    folder = export_lora(pipe, adapter, student.notes, tmp_path / "lora", student.schedules, keys=keys)
    return pipe, net, adapter, student, folder


LOADERS = ["stable_diffusion", "sdxl", "sd3", "flux", "sana", "qwen_image", "z_image", "wan", "cogvideox"]
UNETS = some(("stable_diffusion", "sdxl"), "stable_diffusion")


@pytest.mark.parametrize(
    "name", some(LOADERS, "stable_diffusion", "sd3", "flux", "wan")
)  # a U-Net, joint, packed, video
def test_loaded_and_fused_it_is_the_trained_generator(tmp_path, name):
    family = FAMILIES[name]
    pipe, net, _, _, folder = exported(tmp_path, family)
    trained, untrained = outputs(pipe, family.size, net), outputs(pipe, family.size)
    assert close(trained, untrained) > 1e-3
    pipe.load_lora_weights(folder, weight_name=FILES["diffusers"])
    assert close(trained, outputs(pipe, family.size)) <= 1e-4
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert close(trained, outputs(pipe, family.size)) <= 1e-4


@pytest.mark.parametrize("name", UNETS)
def test_layers_without_a_key_of_the_older_form_load_beside_others(tmp_path, name):
    """Diffusers reads all keys of a file as it reads the first, which here is conv_in's."""
    family = FAMILIES[name]
    pipe, net, _, _, folder = exported(tmp_path, family, target_modules=["conv_in", "conv_out", "to_k"])
    trained = outputs(pipe, family.size, net)
    pipe.load_lora_weights(folder, weight_name=FILES["diffusers"])
    assert close(trained, outputs(pipe, family.size)) <= 1e-4


PATTERNS = {"rank_pattern": {"to_k": 2}, "alpha_pattern": {"to_v": 3}}


@pytest.mark.parametrize("name", UNETS)
def test_kohya_keys_load_too(tmp_path, name):
    family = FAMILIES[name]
    pipe, net, _, _, folder = exported(tmp_path, family, keys=("diffusers", "kohya"), **PATTERNS)
    trained = outputs(pipe, family.size, net)
    for kind in ("kohya", "diffusers"):
        pipe.load_lora_weights(folder, weight_name=FILES[kind])
        assert close(trained, outputs(pipe, family.size)) <= 1e-4
        pipe.unload_lora_weights()
    state = load_file(folder / FILES["kohya"])
    assert all(re.fullmatch(r"lora_unet_\w+\.(lora_down\.weight|lora_up\.weight|alpha)", k) for k in state)
    assert all(float(v) == len(state[k.replace("alpha", "lora_down.weight")]) for k, v in state.items() if "alpha" in k)


def test_what_has_no_loader_or_no_conversion_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"DiTPipeline cannot load LoRAs.*export the whole pipeline"):
        exported(tmp_path, FAMILIES["dit"], target_modules=["to_q"])
    with pytest.raises(UserError, match="no Kohya keys are known for SD3Transformer2DModel"):
        exported(tmp_path, FAMILIES["sd3"], keys=("kohya",))
    with pytest.raises(UserError, match=r"no Kohya keys for x_embedder of FluxTransformer2DModel and 0 more"):
        exported(tmp_path, FAMILIES["flux"], keys=("kohya",), target_modules=["to_q", "x_embedder"])
    pipe = FAMILIES["sd3"].build()
    _, adapter = adapted(pipe)
    more = Adapter({**adapter.weights, "norm.weight": torch.ones(1)}, adapter.config)
    student = student_of(pipe, (2,), "ode", FAMILIES["sd3"].size)
    with pytest.raises(UserError, match=r"also trains norm.weight and 0 more.*lora.norms=false"):
        export_lora(pipe, more, student.notes, tmp_path / "more", student.schedules)
    assert not any(tmp_path.iterdir())


@pytest.mark.usefixtures("verified_here")
def test_a_stack_of_loras_verifies_and_its_card_runs(tmp_path, monkeypatch):
    family = FAMILIES["stable_diffusion"]
    base, style = tmp_path / "base", tmp_path / "style"
    pipe = family.build()
    pipe.save_pretrained(base)
    notes = student_of(pipe, (2,), "renoise", family.size)
    export_lora(pipe, adapted(pipe, seed=1)[1], notes.notes, style, notes.schedules)

    teacher = family.build()
    teacher.load_lora_weights(style, weight_name=FILES["diffusers"], adapter_name="style")
    teacher.set_adapters(["style"], [0.6])
    teacher.fuse_lora(adapter_names=["style"])
    teacher.unload_lora_weights()
    net, adapter = adapted(teacher)
    stack, below = recorded(LoRAFile(path=str(style), weight=0.6))
    student = student_of(teacher, (2,), "renoise", family.size, teacher="base", hub=False, loras=(below,))
    ours = copy.copy(student.ours.model())
    ours.net = net
    folder = export_lora(pipe, adapter, student.notes, tmp_path / "lora", student.schedules)

    (schedule,) = student.schedules
    export = Export(str(base), (stack, StackedLoRA(str(folder), FILES["diffusers"])), str(folder / "scheduler"))
    told = vars(student.ours) | {"model": lambda: ours}
    (agreement,) = verify(export, schedule, type(student.ours)(**told))
    assert agreement.difference <= 1e-5
    assert verify_lora(folder, str(base), stacked=[(style / FILES["diffusers"], None)])[0].difference <= 1e-5
    with pytest.raises(UserError, match="differs from the sampler"):
        verify(Export(str(base), (export.loras[1],), str(folder / "scheduler")), schedule, type(student.ours)(**told))

    text = (folder / "README.md").read_text()
    assert str(tmp_path) not in text
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    for written, real in {"to/style": style, "to/base": base, "to/this/folder": folder}.items():
        code = code.replace(f"path/{written}", str(real))
    names = {}
    exec(code.replace("a photo of a cat", "a"), names)
    assert names["image"].size == (16, 16)
    assert type(names["pipe"].scheduler).__name__ == "LCMScheduler"
    assert names["pipe"].get_active_adapters() == ["style", "fewstep"]


def test_no_file_names_this_machine(tmp_path):
    *_, folder = exported(tmp_path, FAMILIES["sd3"], steps=(1, 2), base_model_name_or_path=str(tmp_path))
    assert (folder / "1step" / "scheduler" / "scheduler_config.json").is_file()
    for file in folder.rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes()
    assert (folder / "README.md").read_text().count("load_lora_weights") == 2


def test_equal_runs_leave_equal_bytes(tmp_path):
    """Metadata of several keys comes from a hash table, whose order differs from one to the next."""
    pipe = FAMILIES["flux"].build()
    _, adapter = adapted(pipe)
    student = student_of(pipe, (2,), "ode", FAMILIES["flux"].size)
    left = set()
    for number in range(12):
        folder = tmp_path / str(number)
        export_lora(pipe, adapter, student.notes, folder, student.schedules, keys=("diffusers", "kohya"))
        left.add(tuple((path.name, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()))
    assert len(left) == 1
    with safe_open(folder / FILES["diffusers"], framework="pt") as saved:
        assert list(saved.metadata())
        assert saved.metadata().keys() >= {"format", "lora_adapter_metadata"}
