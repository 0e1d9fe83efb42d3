"""Several students as one pipeline: each row is drawn by the student that it belongs to, and by nobody else."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES
from torch import Tensor

from eval.images.pipelines import Draw, declared_steps, pipelines
from eval.images.sources import Request, is_image_set
from fastgen.engine.earlier import earlier_of
from fastgen.errors import UserError
from fastgen.export.rebuild import exports
from fastgen.models.pipelines.heads import StepHeads
from fastgen.models.pipelines.notes import Notes
from fastgen.models.pipelines.opening import Opened
from fastgen.models.pipelines.routed import Switch, routed
from fastgen.models.pipelines.students import Students, nearest
from fastgen.models.pipelines.text_embedding import text_embeddings
from fastgen.sampling import stock
from fastgen.sampling.call import Asked
from fastgen.sampling.drawer import Drawer, Wish
from fastgen.sampling.order import sample

LABELS = [7, 0, 3, 9, 5, 1, 7]
PROMPTS = ["zebra", "fox", "a fox", "zebras", "red fox"]
CLASSES = ((0, 2, 4, 6, 8), (1, 3, 5, 7, 9))
SEEDS = [3, 1, 4, 1, 5, 9, 2]


def by_class(seed: int):
    return tiny.class_conditional(seed=seed)


def by_prompt(seed: int):
    """One teacher's text encoder and autoencoder, another denoiser for each student."""
    pipe, other = tiny.stable_diffusion(), tiny.stable_diffusion(seed=seed)
    pipe.register_modules(unet=other.unet)
    return pipe


def drawn(pipe, asked, **settings) -> Tensor:
    batches = stock.generate(pipe, progress=False, seeds=SEEDS[: len(next(iter(asked.values())))], **settings, **asked)
    return torch.cat([batch.images for batch in batches])


def fox_and_zebra(pipe) -> Students:
    return Students(("0", "1"), centres=text_embeddings(pipe, ["fox", "zebra"]))


class Shifted(Students):
    """A mutant: every row goes to the student after its own."""

    def owners(self, pipe, call):
        return [(owner + 1) % len(self.folders) for owner in super().owners(pipe, call)]


class Unordered(Students):
    """A mutant: owners are right in number, and not in place."""

    def owners(self, pipe, call):
        return sorted(super().owners(pipe, call))


CASES = {
    "classes": (by_class, {"labels": LABELS}, lambda _: Students(("0", "1"), CLASSES), [1, 0, 1, 1, 1, 1, 1]),
    "prompts": (by_prompt, {"prompts": PROMPTS}, fox_and_zebra, [1, 0, 0, 1, 0]),
}


def own(case: str, **settings) -> tuple[Tensor, Tensor]:
    """What the students draw alone of the same rows: each row by its own, and by the other one."""
    build, asked, _, owners = CASES[case]
    alone = torch.stack([drawn(build(seed), asked, **settings) for seed in (1, 2)])
    rows = torch.arange(len(owners))
    return alone[owners, rows], alone[[1 - owner for owner in owners], rows]


@pytest.mark.parametrize("batch_size", [2, 16])
@pytest.mark.parametrize("case", CASES)
def test_each_image_is_the_one_that_its_student_draws_alone(case, batch_size):
    build, asked, of, _ = CASES[case]
    settings = {"steps": 2, "batch_size": batch_size}
    expected, others = own(case, **settings)
    pipes = [build(1), build(2)]
    images = drawn(routed(pipes, of(pipes[0])), asked, **settings)
    torch.testing.assert_close(images, expected, atol=1e-5, rtol=0)
    assert (images - others).abs().flatten(1).amax(1).min() > 1e-3


@pytest.mark.parametrize("mutant", [Shifted, Unordered])
@pytest.mark.parametrize("case", CASES)
def test_a_wrong_router_would_be_seen(case, mutant):
    build, asked, of, _ = CASES[case]
    pipes = [build(1), build(2)]
    students = of(pipes[0])
    wrong = mutant(students.folders, students.classes, students.centres)
    images = drawn(routed(pipes, wrong), asked, steps=2)
    assert (images - own(case, steps=2)[0]).abs().max() > 1e-3


def test_rows_of_one_student_are_one_call_of_its_own_pipeline():
    asked, pipes = {"labels": [1, 3, 3]}, [by_class(1), by_class(2)]
    assert torch.equal(
        drawn(routed(pipes, Students(("0", "1"), CLASSES)), asked, steps=3), drawn(by_class(2), asked, steps=3)
    )


def test_noise_of_the_global_generators_is_that_of_the_student_alone():
    def flux(seed: int):
        pipe = tiny.flux()
        pipe.register_modules(transformer=tiny.flux(seed=seed).transformer)
        pipe.scheduler.register_to_config(stochastic_sampling=True)
        return pipe

    settings = {"steps": 3, "arguments": {"height": 16, "width": 16}}
    pipes = [flux(1), flux(2)]
    both = drawn(routed(pipes, fox_and_zebra(pipes[0])), {"prompts": ["zebra", "fox"]}, **settings)
    batches = stock.generate(flux(1), seeds=SEEDS[1:2], prompts=["fox"], progress=False, **settings)
    torch.testing.assert_close(both[1:], torch.cat([batch.images for batch in batches]), atol=1e-5, rtol=0)


def test_one_network_stands_for_all_of_them():
    pipes = [by_class(1), by_class(2)]
    switch = routed(pipes, Students(("0", "1"), CLASSES)).unet
    assert isinstance(switch, Switch)
    assert switch.config.num_class_embeds == 11
    assert len(list(switch.parameters())) == 2 * len(list(by_class(1).unet.parameters()))
    with pytest.raises(AttributeError, match="nothing_like_it"):
        _ = switch.nothing_like_it


@pytest.mark.parametrize("family", ["stable_diffusion", "flux", "sdxl", "qwen_image", "sana", "wan"])
def test_an_embedding_has_length_one_and_does_not_depend_on_others(family):
    pipe = FAMILIES[family].build()
    prompts = ["fox", "a red fox on the hill", "owl", "fox"]
    found = text_embeddings(pipe, prompts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))
    assert torch.equal(found[0], found[3])
    torch.testing.assert_close(torch.cat([text_embeddings(pipe, [prompt]) for prompt in prompts]), found)
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_prompt_without_tokens_is_one_of_padding():
    pipe = FAMILIES["qwen_image"].build()
    assert pipe.tokenizer("").input_ids == []
    found = text_embeddings(pipe, ["", "fox", pipe.tokenizer.pad_token])
    assert torch.equal(found[0], found[2])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_an_embedding_in_closed_form():
    pipe = tiny.stable_diffusion()
    ids = torch.tensor([pipe.tokenizer("a red fox").input_ids])
    with torch.no_grad():
        states = pipe.text_encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    mean = states.sum(dim=0) / ids.shape[1]
    torch.testing.assert_close(text_embeddings(pipe, ["owl", "a red fox"])[1], mean / mean.square().sum().sqrt())


def test_a_pipeline_without_a_text_encoder_cannot_tell_prompts_apart():
    with pytest.raises(UserError, match="lacks one of them"):
        text_embeddings(by_class(0), ["fox"])


def test_the_nearest_centre_in_closed_form():
    centres = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    points = torch.tensor([[0.9, 0.2], [0.2, 0.9], [-0.1, -0.1], [1.0, 1.0]])
    assert nearest(points, centres) == [0, 1, 0, 0]  # (-.1, -.1): squared 1.22, 1.22, 1.62; a tie is the first's


@pytest.fixture(params=["classes", "prompts"])
def folder(request, tmp_path) -> Path:
    build, _, of, _ = CASES[request.param]
    size = {"height": 16, "width": 16} if request.param == "prompts" else {}
    for number in (0, 1):
        build(number + 1).save_pretrained(tmp_path / str(number))
        Notes(steps=(2,), arguments=size, num_classes=None if size else 10).write(tmp_path / str(number))
    of(build(1)).write(tmp_path)
    return tmp_path


def test_a_folder_is_opened_as_one_pipeline(folder):
    case = "prompts" if (folder / Students.CENTRES).is_file() else "classes"
    _, asked, _, owners = CASES[case]
    images = sample(folder, device="cpu", **asked)
    for row, owner in enumerate(owners):
        alone = sample(folder / str(owner), device="cpu", **asked)[row]
        torch.testing.assert_close(images[row], alone, atol=1e-5, rtol=0)
    assert not is_image_set(str(folder))
    assert declared_steps(str(folder)) == (2,)
    request = Request(prompts=tuple(PROMPTS)) if case == "prompts" else Request(labels=tuple(LABELS))
    draw = Draw(seed=0, batch_size=4, device=torch.device("cpu"), dtype="float32", request=request)
    (source,) = pipelines(Opened(str(folder)), draw, steps=(2,), asked=Asked())
    batches = list(source.batches(range(len(owners))))
    measured = torch.cat([batch.images for batch in batches]).float() / 255
    assert (measured - images).abs().max() <= 0.51 / 255
    assert source.costs.bill([source.costs], 4).nfe == 2  # of whichever student
    told = {"prompt": PROMPTS[1]} if case == "prompts" else {"label": LABELS[1]}
    picture = Drawer(Opened(str(folder)), "cpu").draw(Wish(steps=2, seed=1, **told)).image
    assert (torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255 - images[1]).abs().max() <= 0.51 / 255


def test_each_student_has_its_own_last_layers(tmp_path):
    for number in (0, 1):
        pipe = by_class(number + 1)
        own = pipe.unet.conv_out.weight.detach()
        pipe.save_pretrained(tmp_path / str(number))
        Notes(steps=(2,), num_classes=10).write(tmp_path / str(number))
        StepHeads("unet.conv_out", {2: torch.stack([(3 + number) * own, -own])}).write(tmp_path / str(number))
    Students(("0", "1"), CLASSES).write(tmp_path)
    images = sample(tmp_path, labels=LABELS, device="cpu")
    alone = [sample(tmp_path / str(number), labels=LABELS, device="cpu") for number in (0, 1)]
    for row, owner in enumerate(CASES["classes"][3]):
        torch.testing.assert_close(images[row], alone[owner][row], atol=1e-5, rtol=0)
    (tmp_path / "1" / StepHeads.FILE).unlink()
    assert (sample(tmp_path / "1", labels=LABELS, device="cpu") - alone[1]).abs().max() > 1e-3


def test_what_lies_below_goes_below_each(folder):
    opened = Opened(str(folder), base="a-base")
    assert [one.base for one in opened.each] == ["a-base", "a-base"]
    with pytest.raises(UserError, match=r"go below a LoRA, and .*/0 is none"):
        opened.load(2, device="cpu", dtype=torch.float32)


def test_a_student_that_is_not_there_is_named_before_anything_is_loaded(folder):
    (folder / "1").rename(folder / "another")
    opened = Opened(str(folder))
    for ask in (
        lambda: opened.notes,
        lambda: opened.load(2, device="cpu", dtype=torch.float32),
        lambda: exports(folder),
    ):
        with pytest.raises(UserError, match=r"students.json names 2 students, and 1 is not there: copy the folder"):
            ask()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": (4,)}, r"steps is \(2,\) in 0 and \(4,\) in 1"),
        ({"arguments": {"height": 64}}, "arguments is {.*} in 0 and {'height': 64} in 1"),
        ({"guidance": 3.0}, "guidance is 1.0 in 0 and 3.0 in 1"),
        ({"sampler": "ode"}, "sampler is None in 0 and ode in 1"),
    ],
)
def test_students_that_are_not_called_alike_are_not_sampled_as_one(folder, changes, said):
    noted = Notes.read(folder / "0")
    replace(noted, **changes).write(folder / "1")
    with pytest.raises(UserError, match=said):
        sample(folder, num=1, device="cpu")
    noted.write(folder / "1")
    assert Opened(str(folder)).notes == noted


def test_one_of_several_is_named_where_one_is_wanted(folder):
    with pytest.raises(UserError, match=r"holds 2 students: give one of them, as .*/0"):
        earlier_of(str(folder))
    assert earlier_of(str(folder / "1")).kind == "pipeline"
    (folder / "run").mkdir()
    (folder / "run/student").symlink_to(folder)
    with pytest.raises(UserError, match=r"a run without checkpoints: give its student, .*/run/student"):
        earlier_of(str(folder / "run"))


def test_what_says_who_is_for_what_is_read_as_it_was_written(folder):
    told = Students.read(folder)
    told.write(folder / "again")
    again = Students.read(folder / "again")
    assert (again.folders, again.classes) == (told.folders, told.classes)
    assert told.centres is None or torch.equal(again.centres, told.centres)
    assert Students.read(folder / "0") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "does not say"),
        ('{"folders": ["0", "../1"], "classes": [[0], [1]]}', "does not say"),
        ('{"folders": ["0", "1"], "classes": [[0]]}', "another number"),
        ('{"folders": ["0", "1"], "classes": null}', "does not say"),
        ('{"folders": ["0", "1"], "classes": [[0, 1], [1, 2]]}', "a class twice"),
        ('{"folders": ["0", "0"], "classes": [[0], [1]]}', "a folder or"),
        ('{"format": 2, "folders": ["0", "1"], "classes": [[0], [1]]}', "does not say"),
    ],
)
def test_damage_is_said(text, said, tmp_path):
    (tmp_path / Students.FILE).write_text(text)
    with pytest.raises(UserError, match=said):
        Students.read(tmp_path)


def test_a_class_of_nobody_is_refused():
    with pytest.raises(UserError, match="class 9 belongs to none of 2 students"):
        Students(("0", "1"), ((0,), (1,))).owners(by_class(0), {"class_labels": [0, 9]})


def test_a_class_of_nobody_is_told_as_it_is(tmp_path):
    for number in (0, 1):
        by_class(number + 1).save_pretrained(tmp_path / str(number))
        Notes(steps=(2,), num_classes=10).write(tmp_path / str(number))
    Students(("0", "1"), ((0, 1, 2), (3, 4, 5))).write(tmp_path)
    with pytest.raises(UserError, match=r"^class 9 belongs to none of 2 students"):
        sample(tmp_path, labels=[0, 9], device="cpu")
