"""Several students as one stock pipeline, whose call lets each row be drawn by the student that it belongs to."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any

import numpy as np
import torch
from diffusers.utils.outputs import BaseOutput
from torch import Tensor, nn

from .components import denoisers_of
from .stock_pipeline import StockPipeline
from .students import Students

ROWS = ("prompt", "class_labels", "negative_prompt", "generator")
"""Arguments of a stock call that have an entry for each row, as lists."""


class Switch(nn.Module):
    """Several networks of one architecture in the place of one: what it is asked, the one in turn answers.

    Args:
        networks: the networks.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.turn = 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.networks[self.turn](*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            networks: Any = super().__getattr__("networks")
            return getattr(networks[self.turn], name)


def routed(pipes: Sequence[StockPipeline], students: Students) -> StockPipeline:
    """The first of some pipelines, with the denoisers of all; each row of its call goes to one of them.

    A row is drawn as the student's own pipeline draws it from the same generator, in a batch of that student's rows.

    Args:
        pipes: one for each student.
        students: who answers what.
    """
    pipe: Any = pipes[0]
    switches = {name: Switch([one.components[name] for one in pipes]) for name in denoisers_of(pipe)}
    pipe.register_modules(**switches)
    stock = type(pipe)
    call = _routing(stock.__call__, students, list(switches.values()))
    pipe.__class__ = type(stock.__name__, (stock,), {"__call__": call})
    return pipe  # type: ignore[no-any-return]


def _routing(stock: Callable[..., Any], students: Students, switches: Sequence[Switch]) -> Callable[..., Any]:
    """A stock call, made once for each student that its rows belong to."""

    @wraps(stock)
    def call(pipe: StockPipeline, **arguments: Any) -> Any:
        owners = students.owners(pipe, arguments)
        answers, order = [], []
        for owner in sorted(set(owners)):
            rows = [row for row, other in enumerate(owners) if other == owner]
            for switch in switches:
                switch.turn = owner
            answers.append(stock(pipe, **_of(arguments, rows)))
            order += rows
        return _joined(answers, np.argsort(order).tolist())

    return call


def _of(arguments: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """The arguments of some rows; pipelines that draw from the global generators find these seeded with the first."""
    some = dict(arguments)
    for name in ROWS:
        if isinstance(some.get(name), list):
            some[name] = [some[name][row] for row in rows]
    if some.get("batch_size") is not None:
        some["batch_size"] = len(rows)
    if isinstance(some.get("generator"), list):
        torch.manual_seed(some["generator"][0].initial_seed())
    return some


def _joined(answers: Sequence[BaseOutput], back: Sequence[int]) -> BaseOutput:
    """The outputs of several calls as one, in the order `back` of their rows."""
    first: Any = answers[0]
    whole = {one.name: _stacked([getattr(answer, one.name) for answer in answers], back) for one in fields(first)}
    return type(first)(**whole)  # type: ignore[no-any-return]


def _stacked(values: Sequence[Any], back: Sequence[int]) -> Any:
    if isinstance(values[0], Tensor):
        return torch.cat(list(values))[back]
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)[back]
    if isinstance(values[0], list):
        rows = [row for value in values for row in value]
        return [rows[place] for place in back]
    return values[0]
