"""What graphs do with calls, on the CPU: a call is made as the first of its kind was, with what it is told itself."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from fastgen.models.recordable import Actor, Invocation


class Replaying:
    """In the place of `Graphs`.

    Attributes:
        functions: kind -> what the first call of it does.
    """

    def __init__(self) -> None:
        self.functions: dict[Hashable, Callable[[Mapping[str, Any]], Any]] = {}

    def call(self, actor: Actor, told: Mapping[str, Any]) -> Any:
        return self.functions.setdefault(Invocation.of(actor, told).kind, actor.function)(told)
