"""Where an export is verified: what fits is whole, and in parts a GPU holds little of it and says the same."""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from exporting import exported, exported_as, family_student
from families import FAMILIES

from fastgen.errors import NoRoomError, NotInPartsError, VerificationError
from fastgen.export import rebuild, stock_process
from fastgen.export import verify as verification
from fastgen.export.place import Place, bytes_in_float32, places, where_there_is_room
from fastgen.export.verify import Export, verify
from fastgen.models.pipelines.heads import StepHeads
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.weightless import networks_of

WHOLE, PARTS, CPU = Place("cuda"), Place("cuda", whole=False), Place("cpu")
HERE = Place("cpu", whole=False)
CASES = ["ddpm", "dit", "stable_diffusion", "sd3", "flux"]
SLOW = ["sdxl", "pixart_alpha", "sana", "qwen_image", "wan_of_two", "hidream", "lumina2", "cogvideox"]


def free(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (count, 10**12))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.parametrize(
    ("room", "divisible", "expected"),
    [(121, True, [WHOLE, PARTS]), (120, True, [PARTS]), (121, False, [WHOLE]), (120, False, [CPU])],
)
def test_what_fits_is_whole_and_a_gpu_is_left_for_what_cannot_be_divided_alone(monkeypatch, room, divisible, expected):
    free(monkeypatch, room)
    assert places("cuda", lambda: 100, divisible=divisible) == expected


@pytest.mark.parametrize("device", [torch.device("cpu"), "cpu", "auto"])
def test_without_a_gpu_nothing_is_counted(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert places(device, lambda: pytest.fail("counted")) == [CPU]


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    free(monkeypatch, 121)
    assert places("auto", lambda: 100) == [WHOLE, PARTS]


def test_a_place_without_room_gives_way_to_the_next_one():
    tried: list[Place] = []

    def work(place: Place) -> str:
        tried.append(place)
        if place == WHOLE:
            raise torch.OutOfMemoryError("full")
        if place == CPU:
            raise NoRoomError("full")
        return "found"

    assert where_there_is_room([WHOLE, CPU, PARTS], work) == "found"
    assert tried == [WHOLE, CPU, PARTS]
    with pytest.raises(NoRoomError):
        where_there_is_room([WHOLE, CPU], work)


class Cyclic:
    """What goes when garbage is collected, and not before."""

    def __init__(self) -> None:
        self.itself = self


@pytest.mark.usefixtures("uncollected")
def test_what_is_left_in_cycles_counts_neither_as_taken_nor_beside_the_next_attempt(monkeypatch):
    left = [weakref.ref(Cyclic())]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (0 if left[0]() else 121, 10**12))
    assert places("cuda", lambda: 100) == [WHOLE, PARTS]

    def work(place: Place) -> str:
        assert all(one() is None for one in left)
        left.append(weakref.ref(Cyclic()))
        if place == CPU:
            raise NoRoomError("full")
        return "found"

    assert where_there_is_room([CPU, HERE], work) == "found"


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), MemoryError()]
)
def test_memory_that_runs_out_by_another_name_gives_way_too(error):
    def work(place: Place) -> str:
        if place == CPU:
            raise error
        return "found"

    assert where_there_is_room([CPU, HERE], work) == "found"
    with pytest.raises(NoRoomError, match="more memory than there is"):
        where_there_is_room([CPU], work)
    with pytest.raises(RuntimeError, match="shapes"):
        where_there_is_room([CPU, HERE], lambda _: torch.zeros(2, 3) @ torch.zeros(2, 3))


@pytest.mark.parametrize("tried", [[PARTS], [WHOLE, PARTS]])
def test_what_cannot_be_in_parts_is_on_the_cpu_at_last(tried):
    seen: list[Place] = []

    def work(place: Place) -> str:
        seen.append(place)
        if place == WHOLE:
            raise NoRoomError("full")
        if place == PARTS:
            raise NotInPartsError("its layers are called by themselves")
        return "found"

    assert where_there_is_room(tried, work) == "found"
    assert seen == [*tried, CPU]


def test_bytes_are_counted_in_the_files(tmp_path):
    pipe = FAMILIES["flux"].build().to(torch.bfloat16)
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    shared = {id(p): p.numel() for network in networks_of(pipe).values() for p in network.parameters()}
    counted = bytes_in_float32(tmp_path, None)
    assert 4 * sum(shared.values()) <= counted < 4.01 * sum(shared.values())


@pytest.mark.usefixtures("verified_here")
@pytest.mark.parametrize("name", [*CASES, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_an_export_in_parts_samples_as_it_was_trained(tmp_path, name, monkeypatch, in_parts_here):
    student, answers, save = family_student(name, (2,), "ode"), [], stock_process.save_file
    folder, schedule = exported(student, tmp_path / "student"), student.schedules[0]
    monkeypatch.setattr(stock_process, "save_file", lambda answer, path: answers.append(answer) or save(answer, path))
    for place in (CPU, HERE):
        assert verify(Export(str(folder)), schedule, student.ours, place=place)[0].difference <= 1e-5
        assert in_parts_here == ([] if place.whole else ["cpu"] * len(networks_of(student.pipe)))
    assert answers[0].keys() == answers[1].keys()
    assert all(torch.equal(answers[0][key], answers[1][key]) for key in answers[0])


@pytest.mark.usefixtures("verified_here", "in_parts_here")
@pytest.mark.parametrize("kind", ["pipeline", "lora"])
def test_a_folder_is_verified_in_parts_and_keeps_nothing_beside_the_isolated_process(
    tmp_path, monkeypatch, caplog, kind
):
    caplog.set_level(logging.INFO, "fastgen")
    folder = exported_as(kind, tmp_path)
    held, alive, ask, devices = [], [], verification._ask_isolated, set()

    def loaded(*told, **more):
        pipe = load(*told, **more)
        devices.add(more["device"])
        held.extend(weakref.ref(p) for network in networks_of(pipe).values() for p in network.parameters())
        return pipe

    def asked(*told):
        alive.append(sum(parameter() is not None for parameter in held))
        assert told[-1] == HERE
        return ask(*told)

    monkeypatch.setattr(rebuild, "load", loaded)
    monkeypatch.setattr("fastgen.models.pipelines.opening.load", loaded)
    monkeypatch.setattr(verification, "_ask_isolated", asked)
    monkeypatch.setattr(rebuild, "places", lambda *_, **__: [HERE])
    found = rebuild.verify_lora(folder, str(tmp_path / "base")) if kind == "lora" else rebuild.verify_folder(folder)
    assert found[0].difference <= 1e-5
    assert devices == {"cpu"}
    assert alive == [0]
    assert f"{folder} is verified on cpu, a part of the weights at a time" in caplog.text
    assert len(held) > 10


def test_parts_are_read_into_main_memory():
    read: list[tuple[str, object]] = []
    pipe = SimpleNamespace(components={}, register_modules=lambda **_: None)

    def loaded(*, device, parts):
        read.append((device, parts))
        return pipe

    assert all(place.pipe(loaded, {"unet": None}) is pipe for place in (WHOLE, PARTS))
    assert read == [("cuda", {"unet": None}), ("cpu", {"unet": None})]


def test_a_pipeline_into_which_calls_write_is_not_divided(tmp_path, monkeypatch):
    folder = exported(family_student("ddpm", (1,), "ode"), tmp_path / "student")
    asked: list[bool] = []
    monkeypatch.setattr(rebuild, "places", lambda *_, divisible: asked.append(divisible))
    monkeypatch.setattr(rebuild, "where_there_is_room", lambda *_: [])
    for found in (None, StepHeads("unet.conv_out", {2: torch.zeros(2, 1)})):
        monkeypatch.setattr(StepHeads, "read", lambda _, found=found: found)
        rebuild.verify_folder(folder)
    assert asked == [True, False]


def test_what_diffusers_cannot_call_in_parts_is_no_failure_of_the_export(tmp_path, monkeypatch):
    student = family_student("ddpm", (1,), "ode")
    folder, said = exported(student, tmp_path / "student"), "RuntimeError: Tensor on device meta is not on cuda:0"
    died = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    monkeypatch.setattr(verification, "subprocess", died)
    with pytest.raises(NotInPartsError, match="layer by layer"):
        verify(Export(str(folder)), student.schedules[0], student.ours, place=HERE)
    with pytest.raises(VerificationError, match="cannot sample it"):
        verify(Export(str(folder)), student.schedules[0], student.ours)
    monkeypatch.setattr(died, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="KeyError: 'x'"))
    with pytest.raises(NotInPartsError, match="layer by layer"):  # it may be no fault of the whole
        verify(Export(str(folder)), student.schedules[0], student.ours, place=HERE)


def test_the_isolated_process_computes_on_the_card_that_is_named(tmp_path, monkeypatch):
    current: list[str] = []

    @contextmanager
    def within(device: str) -> Iterator[None]:
        current.append(device)
        yield
        current.clear()

    monkeypatch.setattr(stock_process.torch.cuda, "device", within)
    monkeypatch.setattr(stock_process, "loaded", lambda job: current == [job["device"]] or pytest.fail("another card"))
    stock_process.main({"device": "cuda:1", "calls": [], "answer": str(tmp_path / "answer.safetensors")})
    assert not current


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["ddpm", "dit", "stable_diffusion", "sd3", "flux"])
def test_a_card_that_has_a_part_at_a_time_samples_as_one_that_has_all(tmp_path, name, monkeypatch):
    student, answers, ask = family_student(name, (1,), "ode"), [], verification._ask_isolated
    folder = exported(student, tmp_path / "student")

    def asked(*told):
        answers.append((told[-1], ask(*told)))
        return answers[-1][1]

    monkeypatch.setattr(verification, "_ask_isolated", asked)
    for room in (10**12, 0):
        free(monkeypatch, room)
        assert rebuild.verify_folder(folder, device="cuda")[0].difference <= 1e-4
    (whole, one), (parts, other) = answers
    assert (whole, parts) == (WHOLE, PARTS)
    for key in one:
        torch.testing.assert_close(other[key], one[key], rtol=1e-5, atol=1e-5 * float(one[key].double().abs().max()))
