"""Two GPUs through NCCL against one: the same figures, with whole networks and in slices."""

import pytest
import ranks_split
import small_run
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


def test_two_gpus_train_as_one(tmp_path):
    for count in (1, 2):
        assert small_run.in_processes(count, ranks_split.train_on_gpus, tmp_path, count) == [0] * count
    for sharing in ("lora", "full"):
        one = torch.load(tmp_path / f"1 {sharing} none.pt")
        for sharding in ("none", "full"):
            two = torch.load(tmp_path / f"2 {sharing} {sharding}.pt")
            for theirs, ours in zip(two, one, strict=True):
                assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-5), (sharing, sharding)


def test_two_gpus_with_parts_of_a_video_s_tokens_train_as_one(tmp_path):
    for count in (1, 2):
        assert small_run.in_processes(count, ranks_split.train_in_parts_on_gpus, tmp_path, count) == [0] * count
    one, two = (torch.load(tmp_path / f"parts {count}.pt", map_location="cpu") for count in (1, 2))
    for role, gradients in one.items():
        for ours, theirs in zip(gradients, two[role], strict=True):
            assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99, f"{role}: more than bf16's noise"
            assert theirs.norm().item() == pytest.approx(ours.norm().item(), rel=0.02)
