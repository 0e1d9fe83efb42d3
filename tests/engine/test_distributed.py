"""Two gloo processes against one: the same losses, gradients and weights."""

import json

import pytest
import ranks_average
import ranks_run
import small_run
import tiny
import torch
from ranks_split import rivals
from safetensors.torch import load_file

from fastgen.engine.averaging import Averager
from fastgen.engine.distributed import average
from fastgen.models.pipelines.loading import load
from fastgen.models.pipelines.pipeline import Pipeline


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    tiny.class_conditional().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline(teacher):
    return Pipeline(load(teacher, device="cpu"))


@pytest.fixture(scope="module")
def one(pipeline):
    """One process whose micro-batch is the whole batch, where two have half of it each."""
    return small_run.train_several_steps(pipeline)


@pytest.fixture(scope="module")
def folder(teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    assert small_run.in_processes(2, ranks_average.train_a_rank, teacher, folder) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def two(folder):
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def test_two_processes_report_the_losses_of_one(one, two):
    for rank in two:
        for theirs, ours in zip(rank.figures, one.figures, strict=True):
            assert theirs == pytest.approx(ours, abs=1e-6, rel=1e-6)


def test_two_processes_apply_the_gradients_of_one(one, two):
    for rank in two:
        for role, gradients in one.gradients.items():
            assert all(gradient.any() for gradient in gradients[1:])
            torch.testing.assert_close(rank.gradients[role], gradients, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(rank.parameters[role], one.parameters[role], atol=1e-6, rtol=1e-6)


def test_a_spike_of_one_process_is_skipped_by_both(two):
    for rank in two:
        _, before, skipped, after = rank.skipped["held"]
        assert torch.equal(before, skipped)
        assert not torch.equal(skipped, after)
        assert rank.skipped["updates"] == 3
        assert len(rank.skipped["told"]) == 1
    assert two[0].skipped["told"] == two[1].skipped["told"]
    assert torch.equal(two[0].skipped["held"][-1], two[1].skipped["held"][-1])


@pytest.mark.parametrize("name", ranks_average.SEVERAL)
def test_two_processes_apply_the_gradients_of_one_to_rivals(pipeline, folder, name):
    one = small_run.train_several_steps(pipeline, rivals(), cycles=2, **ranks_average.SEVERAL[name][0])
    assert set(one.gradients) == {"generator", "fake_score", "discriminator"}
    for rank in range(2):
        found = torch.load(folder / f"{name} {rank}.pt", weights_only=False)
        for role, gradients in one.gradients.items():
            assert all(gradient.any() for gradient in gradients[1:])
            torch.testing.assert_close(found.gradients[role], gradients, atol=1e-6, rtol=1e-5)


def test_gradients_travel_while_those_before_them_are_made(two):
    for rank in two:
        assert rank.travelled == ["at 3", "sent", "at 2", "sent", "at 1", "sent", "at 0", "sent"]


def test_two_processes_never_drift_apart(two):
    for role in two[0].parameters:
        assert torch.equal(two[0].parameters[role], two[1].parameters[role])


def test_every_process_rolls_out_to_the_same_depth(one, two):
    assert two[0].depths == two[1].depths
    assert two[0].depths == one.depths
    assert len(set(one.depths)) > 1


def test_every_process_has_samples_of_its_own(two):
    assert two[0].noises != two[1].noises


def test_a_gradient_that_one_process_lacks_counts_as_zero(two):
    for rank in two:
        assert rank.averaged["both"].tolist() == [1.5, 1.5]  # of 1 and 2
        assert rank.averaged["second only"].tolist() == [1.0]  # of none and 2
        assert rank.averaged["half"].tolist() == [1.5]
        assert rank.averaged["half"].dtype == torch.bfloat16
        assert "nobody" not in rank.averaged, "its optimizer has to leave it as it is, as on one process"
        assert rank.averaged["values"].tolist() == [1.5]


def test_only_what_lies_on_the_device_of_training_is_averaged(two):
    assert [rank.host_made for rank in two] == [[], []], "NCCL has no collectives of main memory"


def test_processes_wait_for_the_first_and_hear_of_its_failure(two):
    assert [rank.patience["alone"] for rank in two] == [{"by": 0}, None]
    assert [rank.patience["shared"] for rank in two] == [{"by": 0}] * 2
    assert two[0].patience["failure"] == "no space left"
    assert two[1].patience["failure"] == "the first process stopped: UserError: no space left"


def test_processes_with_disks_of_their_own_go_on_from_what_the_first_has(two):
    first, second = (rank.resumed for rank in two)
    assert not torch.equal(first["own"], second["own"])
    for rank in (first, second):
        assert (rank["step"], rank["position"]) == (3, 1)
        assert torch.equal(rank["got"], first["own"])
        assert rank["of the second alone"] is None
    assert torch.equal(first["moments"][0]["exp_avg"], second["moments"][0]["exp_avg"])
    assert first["moments"][0]["exp_avg"].any()
    assert "state.json" in first["damaged"]
    assert "the first process stopped" in second["damaged"]
    assert "state.json" in second["damaged"]


@pytest.mark.slow  # three processes; above, two with disks of their own read what the first one has
def test_a_run_whose_second_process_sees_no_checkpoint_goes_on_as_one(tmp_path):
    tiny.class_conditional(size=16, channels=1).save_pretrained(tmp_path / "teacher")
    train = {"images": 8, "batch": 2, "ema": 0.9}
    changes = {
        "student": {"steps": [1]},
        "checkpoints": {"every": 4},
        "stages": [{"objective": {"name": "kd"}, "train": train}],
    }
    config = small_run.run_config(tmp_path, out=tmp_path / "first", **changes)
    assert small_run.in_processes(1, small_run.run_or_die, config, False, (0, 3)) == [-9]
    disks = [config.out, tmp_path / "second"]
    assert small_run.in_processes(2, ranks_run.resume_with_disks_of_their_own, config, disks) == [0, 0]
    told = [(disk / "cycles").read_text() for disk in disks]
    assert told[0] == told[1]
    assert [line.split()[0] for line in told[0].splitlines()] == ["2", "3"]


@pytest.mark.slow
def test_an_error_on_one_process_ends_all(tmp_path):
    tiny.class_conditional(size=16, channels=1).save_pretrained(tmp_path / "teacher")
    config = small_run.run_config(tmp_path)
    assert small_run.in_processes(2, ranks_run.fail_on_the_second, config) == [1, 1], "neither had to be killed"


@pytest.mark.slow
def test_an_export_may_take_longer_than_the_processes_time_out(tmp_path):
    small_run.write_recipe(tmp_path)
    assert small_run.in_processes(2, ranks_run.run_with_a_slow_export, tmp_path) == [0, 0]


def test_one_process_keeps_its_gradients_as_they_are():
    parameter, without = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    parameter.grad = gradient = torch.ones(2)
    Averager([parameter, without]).finish()
    assert parameter.grad is gradient
    assert without.grad is None
    assert average(torch.ones(1)).item() == 1


@pytest.mark.slow
def test_two_processes_carry_out_a_run_whose_teacher_is_still_to_be_trained(tmp_path):
    small_run.write_recipe(tmp_path)
    assert small_run.in_processes(2, ranks_run.run_with_recipe, tmp_path) == [0, 0]
    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["images"] for line in lines] == [2, 4]
    weights = "unet/diffusion_pytorch_model.safetensors"
    taught, learned = (load_file(tmp_path / folder / weights) for folder in ("teacher", "run/student"))
    assert any(not torch.equal(taught[name], learned[name]) for name in taught)
