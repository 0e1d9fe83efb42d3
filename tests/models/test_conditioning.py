"""What the rows of a batch are conditioned on, with the twin of each that goes without."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from fastgen.models.conditioning import Conditioning


def nested() -> Conditioning:
    null = Conditioning(3, {"label": torch.full((3,), 9), "added": {"size": torch.zeros(3, 2)}}, {"scale": 7})
    added = {"size": torch.arange(6.0).reshape(3, 2)}
    return Conditioning(3, {"label": torch.arange(3), "added": added}, {"scale": 7}, null=null)


class Copied(Tensor):
    """A tensor that calls itself one of a GPU, and notes whether a copy of it was waited for."""

    waited: ClassVar[list[tuple[str, bool]]] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if getattr(func, "__self__", None) is Tensor.device:
            return torch.device("cuda")
        if func is Tensor.to:
            cls.waited.append((torch.device(args[1]).type, not (kwargs or {}).get("non_blocking")))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_a_copy_to_main_memory_is_waited_for():
    rows = torch.zeros(2, 3).as_subclass(Copied)
    cond = Conditioning(2, {"label": rows, "listed": [rows, rows]}, {"scale": rows}, null=Conditioning(2, {"l": rows}))
    Copied.waited.clear()
    cond.to("cpu")
    assert Copied.waited == [("cpu", True)] * 5


@pytest.mark.gpu
def test_what_a_busy_gpu_still_computes_is_not_read_before_it_is_there():
    torch.ones(1 << 20, device="cuda").cpu()
    for value in range(1, 4):
        torch.cuda._sleep(200_000_000)  # about a tenth of a second
        told = Conditioning(1, {"prompt": torch.full((1, 1 << 20), float(value), device="cuda")}).to("cpu")
        assert told.batched["prompt"].clone().eq(value).all()


def test_indexing_takes_rows_here_in_mappings_and_in_the_null_twin():
    rows = nested().index(torch.tensor([2, 0, 2, 1]))
    assert rows.size == rows.unconditional.size == 4
    assert rows.kwargs["label"].tolist() == [2, 0, 2, 1]
    assert rows.kwargs["added"]["size"].tolist() == [[4, 5], [0, 1], [4, 5], [2, 3]]
    assert rows.unconditional.kwargs["label"].tolist() == [9, 9, 9, 9]
    assert rows.kwargs["scale"] == 7


def test_cat_puts_rows_one_after_the_other():
    both = Conditioning.cat([nested(), nested().index(torch.tensor([1]))])
    assert both.size == both.unconditional.size == 4
    assert both.kwargs["label"].tolist() == [0, 1, 2, 1]
    assert both.kwargs["added"]["size"].shape == (4, 2)
    assert both.unconditional.kwargs["added"]["size"].shape == (4, 2)


def test_a_guidance_pair_has_no_null_twin():
    pair = Conditioning.cat([nested(), nested().unconditional])
    assert pair.kwargs["label"].tolist() == [0, 1, 2, 9, 9, 9]
    assert pair.null is None


def test_dropped_rows_are_the_null_twins():
    dropped = nested().dropped(torch.tensor([True, False, True]))
    assert dropped.kwargs["label"].tolist() == [9, 1, 9]
    assert dropped.kwargs["added"]["size"].tolist() == [[0, 0], [2, 3], [0, 0]]


def test_moving_changes_every_tensor():
    there = nested().to("meta")
    assert there.kwargs["added"]["size"].device.type == "meta"
    assert there.unconditional.kwargs["label"].device.type == "meta"
    assert there.kwargs["scale"] == 7


def test_guidance_without_an_unconditional_mode_is_refused():
    with pytest.raises(ValueError, match="set guidance to 1"):
        _ = Conditioning(3).unconditional
