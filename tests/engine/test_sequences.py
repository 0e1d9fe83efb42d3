"""Tokens of one sample on two gloo processes: gradients of one process, and what cannot be trained so is refused."""

import pytest
import ranks_split
import small_run
import torch

from fastgen.distillation.checks import check_stages
from fastgen.engine.splitting import micro_batches
from fastgen.errors import UserError


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    assert small_run.in_processes(2, ranks_split.train_in_parts, folder) == [0, 0]
    return {
        name: [torch.load(folder / f"{name} {rank}.pt", weights_only=False) for rank in (0, 1)]
        for name in ranks_split.PARTED
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks_split.PARTED)
def test_gradients_and_figures_are_those_of_one_process(two, name):
    """Two processes take a minute for these, so that it is among the slow tests."""
    one = ranks_split.parted(name, 1)
    expected, figures, again = ranks_split.gradients_of(one), one.cycle(), one.cycle()
    entered = ranks_split.entered(one)
    for rank in two[name]:
        assert set(rank["tokens"]) == {2 * 2 * 4 // 2}, "each has a half of them"
        for role, gradients in expected.items():
            assert gradients[0].any()
            torch.testing.assert_close(rank["gradients"][role], gradients, atol=1e-6, rtol=1e-4)
        assert rank["figures"] == pytest.approx(figures, abs=1e-6, rel=1e-4)
        assert rank["again"] == pytest.approx(again, abs=1e-6, rel=1e-4), "drawing must change nothing"
        torch.testing.assert_close(rank["entered"], entered, atol=5e-6, rtol=1e-4)  # of values about 1; 1.9e-6 was seen
    assert two[name][0]["shown"].isfinite().all()


def refused(folder, objective, **train):
    config = small_run.run_config(
        folder, stages=[{"objective": objective, "train": {"images": 4, "batch": 2, **train}}]
    )
    check_stages(config)


def test_what_cannot_be_parted_is_refused(tmp_path):
    quiet = {"name": "dmd2", "gan": 0}
    refused(tmp_path, quiet, sequence_parallel=2)
    with pytest.raises(UserError, match=r"train\.sequence_parallel=2.*and a discriminator, which reads whole layers"):
        refused(tmp_path, {"name": "dmd2"}, sequence_parallel=2)
    with pytest.raises(UserError, match=r"and train\.sharding=full"):
        refused(tmp_path, quiet, sequence_parallel=2, sharding="full")
    with pytest.raises(UserError, match=r"and train\.compile"):
        refused(tmp_path, quiet, sequence_parallel=2, compile=True)


def test_groups_of_processes_share_a_batch():
    def split(processes, **train):
        return micro_batches(small_run.TrainConfig.model_validate({"images": 8, "batch": 8, **train}), processes)

    assert split(4) == (2, 1)
    assert split(4, sequence_parallel=2) == (4, 1)
    assert split(4, sequence_parallel=4, micro_batch=2) == (2, 4)
    with pytest.raises(UserError, match="sequence_parallel is 2, and 3 processes are no groups of 2"):
        split(3, sequence_parallel=2)
