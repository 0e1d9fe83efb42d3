"""All that an update of a stage changes, before and after."""

import torch


def everything(stage):
    """All numbers of a stage that an update changes."""
    snapshot = stage.snapshot()
    return [t.clone() for group in snapshot.tensors.values() for t in group.values()], snapshot.state["optimizers"]


def same(before, after):
    return before[1] == after[1] and all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
