"""Verification: what an isolated process samples is what was trained, and every edit of an export is noticed."""

import copy
import json
import signal
import sys
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from diffusers import EDMEulerScheduler
from exporting import edit, exported, exported_as, family_student, student_of
from families import FAMILIES

from fastgen.cli import main
from fastgen.errors import NoRoomError, UserError, VerificationError
from fastgen.export import stock_process
from fastgen.export import verify as verification
from fastgen.export.export import export
from fastgen.export.rebuild import verify_folder, verify_lora
from fastgen.export.seeding import hands_generator_on
from fastgen.export.unguided import unguided
from fastgen.export.verify import Export, verify
from fastgen.models.pipelines.loading import load

# One count or two for each family, with one of the two samplers.
CASES = {
    "ddpm": ("renoise", (1, 4)),
    "consistency": ("renoise", (1, 2)),
    "dit": ("ode", (1, 2)),
    "stable_diffusion": ("renoise", (2,)),
    "sdxl": ("ode", (4,)),
    "sd3": ("renoise", (4,)),
    "flux": ("renoise", (1, 4)),
    "flux2": ("ode", (2,)),
    "flux2_klein": ("renoise", (2,)),
    "pixart_alpha": ("ode", (1, 2)),
    "pixart_sigma": ("renoise", (2,)),
    "sana": ("renoise", (2,)),
    "sana_sprint": ("renoise", (2,)),
    "qwen_image": ("renoise", (2,)),
    "z_image": ("renoise", (2,)),
    "lumina2": ("ode", (4,)),
    "aura_flow": ("renoise", (2,)),
    "hidream": ("ode", (2,)),
    "chroma": ("renoise", (2,)),
    "ltx": ("renoise", (2,)),
    "wan": ("renoise", (2,)),
    "wan_of_two": ("ode", (4,)),
    "cogvideox": ("renoise", (1, 3)),
    "hunyuan_video": ("ode", (1, 2)),
    "krea2": ("renoise", (2,)),
}
USUAL = {"ddpm", "consistency", "dit", "stable_diffusion", "sdxl", "flux", "sana_sprint", "lumina2"}
USUAL |= {"wan_of_two", "cogvideox"}
"""Each scheduler with its samplers and each kind of sample; the rest, half a minute, have other networks alone."""


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in USUAL)) for n in CASES])
def test_every_family_samples_as_it_was_trained(tmp_path, name):
    sampler, steps = CASES[name]
    student = family_student(name, steps, sampler)
    folder = exported(student, tmp_path / "student")
    agreements = [
        agreement
        for schedule in student.schedules
        for agreement in verify(Export(str(folder / schedule.folder)), schedule, student.ours)
    ]
    assert [agreement.steps for agreement in agreements] == list(steps)
    assert max(agreement.difference for agreement in agreements) <= 1e-5


def test_a_fresh_process_does_not_know_us_and_agrees(tmp_path):
    student = family_student("dit", (1, 2), "ode")
    folder = exported(student, tmp_path / "student")
    assert [agreement.steps for agreement in verify_folder(folder)] == [1, 2]


@pytest.mark.usefixtures("verified_here")
def test_step_counts_with_schedulers_of_their_own_share_their_weights(tmp_path):
    student = family_student("aura_flow", (1, 2), "renoise")
    folder = exported(student, tmp_path / "student")
    assert sorted(path.name for path in folder.iterdir()) == ["1step", "2step", "README.md", "manifest.json"]
    weights = [next((folder / f"{n}step" / "transformer").glob("*.safetensors")) for n in (1, 2)]
    assert weights[0].samefile(weights[1])
    assert [agreement.steps for agreement in verify_folder(folder)] == [1, 2]


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("name", ["flux", "chroma"])
def test_what_a_call_is_told_beside_its_size_is_told_to_both(tmp_path, name):
    student = family_student(name, (1,), "ode")
    assert student.notes.arguments["max_sequence_length"] < 256
    assert verify_folder(exported(student, tmp_path / "student"))[0].difference <= 1e-5


def test_a_process_that_knows_us_is_not_isolated(tmp_path, monkeypatch):
    student = family_student("ddpm", (1,), "ode")
    folder = exported(student, tmp_path / "student")
    last = Path(stock_process.__file__).read_text().splitlines()[-1].strip()
    assert last.startswith("assert")
    disguised = tmp_path / "disguised.py"
    disguised.write_text(f"import sys, fastgen\n{last}\n")
    monkeypatch.setattr("fastgen.export.stock_process.__file__", str(disguised))
    with pytest.raises(UserError, match="should know only Diffusers"):
        verify(Export(str(folder)), student.schedules[0], student.ours)


@pytest.mark.usefixtures("verified_here")
def test_other_weights_and_other_samplers_fail(tmp_path):
    student = family_student("flux", (2,), "renoise")
    folder = exported(student, tmp_path / "student")
    (schedule,) = student.schedules
    with pytest.raises(UserError, match="differs from the sampler of training"):
        verify(Export(str(folder)), schedule, replace(student.ours, sampler="ode"))
    next(student.ours.model().parameters()).data.add_(0.1)
    with pytest.raises(UserError, match=r"differs from the sampler of training by .*, allowed 1e-05. Do not publish"):
        verify(Export(str(folder)), schedule, student.ours)


@pytest.mark.usefixtures("verified_here")
def test_noise_of_another_size_fails(tmp_path):
    pipe = tiny.class_conditional()
    student = student_of(pipe, (2,), "ode")
    folder = exported(student, tmp_path / "student")
    index = json.loads((folder / "model_index.json").read_text())
    edit(folder, "model_index.json", scheduler=[index["scheduler"][0], "EulerDiscreteScheduler"])
    edit(folder, "scheduler/scheduler_config.json", _class_name="EulerDiscreteScheduler", timestep_spacing="trailing")
    with pytest.raises(UserError, match=r"starts .* away from the noise of its seed"):
        verify(Export(str(folder)), student.schedules[0], student.ours)


@pytest.mark.usefixtures("verified_here")
def test_edm_students_start_as_their_scheduler_does(tmp_path):
    pipe = tiny.class_conditional()
    pipe.register_modules(scheduler=EDMEulerScheduler())
    student = student_of(pipe, (1, 4), "ode")
    folder = exported(student, tmp_path / "student")
    one, four = verify(Export(str(folder)), student.schedules[0], student.ours)
    assert one.difference <= 4e-5  # the scheduler's float32 takes 240 from 240
    assert four.difference <= 1e-5


@pytest.mark.usefixtures("verified_here")
def test_a_plain_call_of_an_unguided_student_is_what_was_trained(tmp_path):
    student = family_student("stable_diffusion", (2,), "renoise")
    pipe = unguided(student.teacher.pipe)
    folder = export(pipe, student.notes, tmp_path / "student", student.schedules)
    assert "guidance" not in (folder / "README.md").read_text()
    calls = [{**call, "guidance_scale": 7.5} for call in student.ours.calls]
    (schedule,) = student.schedules
    assert verify(Export(str(folder)), schedule, replace(student.ours, calls=calls))[0].difference <= 1e-5
    assert verify_folder(folder)[0].difference <= 1e-5


@pytest.mark.parametrize("name", ["stable_diffusion", "sana", "pixart_sigma", "flux", "sd3", "dit", "wan", "ddpm"])
def test_who_hands_the_generator_on(name):
    assert hands_generator_on(FAMILIES[name].build()) == (name in {"stable_diffusion", "sana", "pixart_sigma", "ddpm"})


@pytest.mark.usefixtures("verified_here")
def test_the_command_verifies_and_pushes(tmp_path, capsys, monkeypatch):
    student = family_student("ddpm", (1, 2), "renoise")
    folder = exported(student, tmp_path / "student")
    pushed = []
    monkeypatch.setattr("fastgen.export.export.push", lambda *told: pushed.append(told) or "there")
    monkeypatch.setattr("fastgen.cli.verify._token", lambda: "secret")
    assert main(["verify", str(folder), "--push", "me/mine"]) == 0
    assert "student at 2 steps: difference" in capsys.readouterr().out
    assert pushed == [(folder, "me/mine")]
    monkeypatch.setattr("fastgen.export.verify.TOLERANCE", -1.0)
    assert main(["verify", str(folder), "--push", "me/mine"]) == VerificationError.exit_code
    assert len(pushed) == 1
    assert main(["verify", str(folder), "--lora"]) == 2
    assert "student holds a pipeline, and --lora, --base and --stack are of a LoRA" in capsys.readouterr().err
    assert main(["verify", str(tmp_path)]) == 2
    assert f"is the folder of a run: give its student, {folder}" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["nonsense", "a/b/c", "me/-mine", "me/a..b", "me/" + 100 * "x"])
def test_a_push_to_no_hub_id_is_refused_before_any_work(tmp_path, capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["verify", str(tmp_path), "--push", name])
    assert stop.value.code == 2
    assert "argument --push" in capsys.readouterr().err


def test_a_push_without_a_login_is_refused_before_any_work(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fastgen.cli.verify._token", lambda: None)
    monkeypatch.setattr("fastgen.export.rebuild.verify_folder", lambda *_, **__: pytest.fail("it was verified"))
    assert main(["verify", str(tmp_path), "--push", "me/mine"]) == 2
    assert "hf auth login" in capsys.readouterr().err


@pytest.mark.usefixtures("verified_here")
def test_the_isolated_process_has_the_device_to_itself(tmp_path, monkeypatch):
    student = family_student("ddpm", (1,), "ode")
    folder, model, seen = exported(student, tmp_path / "student"), student.ours.model(), []
    ask = verification._ask_isolated
    ours = replace(student.ours, model=lambda: seen.append("made") or model)
    monkeypatch.setattr(verification, "_ask_isolated", lambda *told: seen.append("asked") or ask(*told))
    model.register_forward_pre_hook(lambda *_: seen.append("samples"))
    verify(Export(str(folder)), student.schedules[0], ours)
    assert seen[:3] == ["asked", "made", "samples"]
    assert seen.count("made") == 1


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("kind", ["pipeline", "lora"])
def test_no_weight_is_held_beside_the_isolated_process(tmp_path, monkeypatch, kind):
    folder = exported_as(kind, tmp_path)
    held, alive, ask = [], [], verification._ask_isolated

    def loaded(*told, **more):
        pipe = load(*told, **more)
        parts = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module))
        held.extend(weakref.ref(parameter) for part in parts for parameter in part.parameters())
        return pipe

    def asked(*told):
        alive.append(sum(parameter() is not None for parameter in held))
        return ask(*told)

    monkeypatch.setattr("fastgen.export.rebuild.load", loaded)
    monkeypatch.setattr("fastgen.models.pipelines.opening.load", loaded)
    monkeypatch.setattr(verification, "_ask_isolated", asked)
    assert verify_lora(folder, str(tmp_path / "base")) if kind == "lora" else verify_folder(folder)
    assert len(held) > 10
    assert alive == [0]


@pytest.mark.usefixtures("verified_here")
def test_weights_before_their_rounding_are_made_when_the_others_are_gone(tmp_path):
    student = family_student("ddpm", (1, 2), "renoise")
    folder, (one, other) = exported(student, tmp_path / "student"), (student.ours.model() for _ in range(2))
    made, alive = [], []

    def model(net):
        fresh = copy.deepcopy(net)
        alive.append(sum(before() is not None for before in made))
        made.append(weakref.ref(fresh))
        return fresh

    ours = replace(student.ours, model=lambda: model(one), trained=lambda: model(other))
    found = verify(Export(str(folder)), student.schedules[0], ours)
    assert alive == [0, 0]
    assert all(agreement.rounding == pytest.approx(agreement.difference, rel=1e-3) for agreement in found)


SHORT = "torch.AcceleratorError: CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
"""What a process says that finds no room for what CUDA itself needs."""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory"),
        (1, SHORT),
        (1, "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        (1, "RuntimeError: [enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        (-signal.SIGKILL, ""),
        (-signal.SIGTERM, ""),
        (-signal.SIGINT, "KeyboardInterrupt"),
    ],
)
def test_an_isolated_process_without_room_is_no_failure_of_the_export(tmp_path, monkeypatch, code, said):
    student = family_student("ddpm", (1,), "ode")
    folder = exported(student, tmp_path / "student")
    died = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=code, stderr=said))
    monkeypatch.setattr(verification, "subprocess", died)
    with pytest.raises(NoRoomError, match="more memory than there is"):
        verify(Export(str(folder)), student.schedules[0], student.ours)


def test_an_isolated_process_that_says_what_is_no_text_is_heard(tmp_path, monkeypatch):
    student = family_student("ddpm", (1,), "ode")
    folder, script = exported(student, tmp_path / "student"), tmp_path / "script.py"
    script.write_text(r"import os; os.write(2, b'Error: \xff of a driver'); raise SystemExit(1)")
    monkeypatch.setattr(verification, "stock_process", SimpleNamespace(__file__=str(script)))
    with pytest.raises(VerificationError, match="cannot sample it: Error: \ufffd of a driver"):
        verify(Export(str(folder)), student.schedules[0], student.ours)


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("name", ["sd3", "stable_diffusion"])
def test_noise_between_steps_is_the_seeds_whatever_a_device_would_draw(tmp_path, monkeypatch, name):
    student = family_student(name, (2,), "renoise")
    folder = exported(student, tmp_path / "student")
    scheduler = sys.modules[type(student.schedules[0].scheduler).__module__]
    draw, device = scheduler.randn_tensor, torch.Generator().manual_seed(999)

    def drawn(*shape, generator=None, **how):
        return draw(*shape, generator=generator or device, **how)

    monkeypatch.setattr(scheduler, "randn_tensor", drawn)
    assert verify(Export(str(folder)), student.schedules[0], student.ours)[0].difference <= 1e-5
