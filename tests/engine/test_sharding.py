"""Networks in slices on two gloo processes: gradients, checkpoints and exports of one process with whole ones."""

import pytest
import ranks_split
import small_run
import tiny
import torch
from safetensors.torch import load_file

from fastgen.distillation.checks import check_stages
from fastgen.engine import checkpoint
from fastgen.engine.memory import room_for
from fastgen.engine.quality import left_by
from fastgen.errors import UserError


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny.class_conditional().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ones(teacher, tmp_path_factory):
    """What one process did by name, and a folder of its checkpoints."""
    folder, told = tmp_path_factory.mktemp("slices"), {}
    for name in ranks_split.SLICED:
        trained = ranks_split.sliced(teacher, name)
        told[name] = {"gradients": ranks_split.gradients_of(trained), "figures": trained.cycle()}
        ranks_split.saved(trained, folder / f"{name} of one")
        told[name] |= {"left": left_by(trained), "again": trained.cycle()}
    return told, folder


@pytest.fixture(scope="module")
def folder(teacher, ones):
    assert small_run.in_processes(2, ranks_split.train_in_slices, teacher, ones[1]) == [0, 0]
    return ones[1]


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow) for name in ranks_split.SLICED])
def name(request):
    """Two processes take a minute or two for these, so that they are among the slow tests."""
    return request.param


@pytest.fixture
def two(folder, name):
    return [torch.load(folder / f"{name} {rank}.pt", weights_only=False) for rank in range(2)]


def test_gradients_are_those_of_whole_networks(ones, two, name):
    for rank in two:
        for role, gradients in ones[0][name]["gradients"].items():
            assert len(gradients) == 3
            assert all(gradient.any() for gradient in gradients[1:])
            torch.testing.assert_close(rank["gradients"][role], gradients, atol=1e-6, rtol=1e-5)


def test_figures_are_those_of_whole_networks(ones, two, name):
    for rank in two:
        assert rank["figures"] == pytest.approx(ones[0][name]["figures"], abs=1e-6, rel=1e-5)
        assert rank["again"] == pytest.approx(ones[0][name]["again"], abs=1e-6, rel=1e-4), "drawing must change nothing"


def test_what_is_left_is_whole_on_every_process(ones, two, name):
    for rank in two:
        for origin, weights in ones[0][name]["left"].items():
            torch.testing.assert_close(rank["left"][origin], weights, atol=1e-6, rtol=1e-5)


def test_every_process_holds_a_half(teacher, two, name):
    roles = ranks_split.sliced(teacher, name).roles
    for role in ("generator", "fake_score") if name != "adapters" else ():
        count = sum(p.numel() for p in roles.parameters(role))
        assert sum(rank["held"][role] for rank in two) == count
        assert all(rank["held"][role] < 0.6 * count for rank in two)
    heads = sum(p.numel() for p in roles.parameters("discriminator"))
    assert sum(rank["held"]["discriminator"] for rank in two) == heads


def test_a_process_needs_room_for_the_state_of_its_slices(teacher, two, name):
    whole = room_for(ranks_split.sliced(teacher, name)).state
    assert all(rank["room"].state < (0.6 if name == "full" else 1) * whole for rank in two)


def test_one_process_may_draw_alone(two):
    assert two[0]["shown"].isfinite().all()
    assert two[1]["shown"] is None


def test_a_checkpoint_of_slices_is_resumed_by_one_process_bit_for_bit(teacher, folder, two, name):
    one = ranks_split.sliced(teacher, name)
    found = checkpoint.load(folder / name / "00000001")
    one.restore(found)
    held = one.snapshot()
    assert set(held.tensors) == set(found.tensors)
    assert held.state == {**found.state, "position": held.state["position"]}
    for group, tensors in found.tensors.items():
        equal(tensors, held.tensors[group])
    own = {key.partition(".")[2]: value for key, value in found.tensors["generator"].items()}
    equal(own, two[0]["left"]["generator"])


def test_a_checkpoint_of_one_process_is_resumed_in_slices_bit_for_bit(ones, folder, two, name):
    first, again = (checkpoint.load(folder / f"{name} of one{end}" / "00000001") for end in ("", " again"))
    assert again.state == first.state
    assert set(again.tensors) == set(first.tensors)
    for group, tensors in first.tensors.items():
        equal(tensors, again.tensors[group])
    for rank in two:
        assert rank["resumed"] == pytest.approx(ones[0][name]["again"], abs=1e-6, rel=1e-5)


@pytest.mark.slow
def test_hosts_that_hold_the_same_slices_average_their_gradients(teacher, ones, tmp_path):
    for name in ranks_split.SLICED:
        (tmp_path / f"{name} of one").symlink_to(ones[1] / f"{name} of one")
    assert small_run.in_processes(2, ranks_split.train_in_slices, teacher, tmp_path, "host") == [0, 0]
    for name in ranks_split.SLICED:
        for rank in range(2):
            found = torch.load(tmp_path / f"{name} {rank}.pt", weights_only=False)
            for role, gradients in ones[0][name]["gradients"].items():
                torch.testing.assert_close(found["gradients"][role], gradients, atol=1e-6, rtol=1e-5)
            assert found["again"] == pytest.approx(ones[0][name]["again"], abs=1e-6, rel=1e-4)


EVEN = {"lr": 1e-3, "eps": 1e-3}
"""Of an optimizer that steps by gradients. With the usual eps its first steps are by their signs: one that is rounded
to the other sign moves a weight by twice the learning rate, and gradients off by 1e-7 of the largest moved exports by
1.4e-4. With this one they move them by 3e-8, gradients twice as large by 6e-4."""


@pytest.mark.slow
@pytest.mark.parametrize("sharing", ["full", "lora"])
def test_a_run_in_slices_exports_what_one_process_exports(tmp_path, sharing):
    tiny.class_conditional(size=16, channels=1).save_pretrained(tmp_path / "teacher")
    train = {"images": 4, "batch": 2, "micro_batch": 1, "ema": 0.9, "sharding": "full", "optim": EVEN}
    stages = [
        {"objective": {"name": name, **more}, "train": train} for name, more in (("kd", {}), ("dmd2", {"ratio": 1}))
    ]
    changes = {
        "stages": stages,
        "sharing": sharing,
        "log": {"every": 1, "previews": 1, "trackers": []},
        "evaluate": {"protocol": "digits", "num": 20, "teacher_steps": 2},
    }
    for count in (1, 2):
        config = small_run.run_config(tmp_path, out=tmp_path / f"{count}", **changes)
        assert small_run.in_processes(count, small_run.run_or_die, config, False, None) == [0] * count
        assert len(list((config.out / "previews").glob("[0-9]*.png"))) == 2
    one, two = (
        load_file(tmp_path / str(count) / "student/unet/diffusion_pytorch_model.safetensors") for count in (1, 2)
    )
    torch.testing.assert_close(two, one, atol=1e-5, rtol=1e-4)


def equal(found, wanted):
    assert set(found) == set(wanted)
    assert all(torch.equal(value, wanted[key]) for key, value in found.items())


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": {"compile": True}}, "train.compile=false"),
        ({"train": {"precision": "fp16"}}, "bf16"),
        ({"objective": {"gan": {"r1": 1.0}}}, "approximate_r1"),
        ({"objective": {"name": "self_shortcut"}, "student": {"steps": [4, 2], "sampler": "ode"}}, "same"),
        ({"objective": {"name": "meanflow"}, "student": {"steps": [1], "sampler": "ode"}}, "derivative_step"),
    ],
)
def test_what_slices_cannot_do_is_refused(tmp_path, changes, named):
    train = {"images": 8, "batch": 2, "sharding": "full", **changes.get("train", {})}
    objective = {"name": "dmd2", **changes.get("objective", {})}
    student = changes.get("student", {"steps": [2]})
    config = small_run.run_config(tmp_path, stages=[{"objective": objective, "train": train}], student=student)
    with pytest.raises(UserError, match=named):
        check_stages(config)
