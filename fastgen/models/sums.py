"""Gradients of weights in fixed memory, to which recorded backward passes add."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from .masters import AT_ONCE, gathered


class Sums:
    """Fixed memory to which recorded backward passes add the gradients of weights.

    Roles with weights of the same shapes take turns in using it. Should two of them have gradients at once, the earlier
    one's are moved to memory of their own.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self.places = [torch.zeros_like(weight, dtype=weight.grad_dtype) for weight in weights]
        self._holders: list[nn.Parameter | None] = [None] * len(weights)

    def add(self, weights: Sequence[nn.Parameter], reached: Sequence[int], replay: Callable[[], None]) -> None:
        """Run `replay`, which adds to the fixed memory, and hand the result on to the gradients of these weights."""
        fresh = [i for i in reached if weights[i].grad is not self.places[i]]
        for i in fresh:
            holder = self._holders[i]
            if holder is not None and holder.grad is self.places[i]:
                holder.grad = self.places[i].clone()
        if fresh:
            torch._foreach_zero_([self.places[i] for i in fresh])
        replay()
        first = [i for i in fresh if weights[i].grad is None]
        summed = [(grad, self.places[i]) for i in fresh if (grad := weights[i].grad) is not None]  # left by others
        if summed:
            torch._foreach_add_([grad for grad, _ in summed], [place for _, place in summed])
        for i in fresh:
            self._holders[i] = None
        for i in first:
            weights[i].grad = self.places[i]
            self._holders[i] = weights[i]

    def spare(self, reached: Sequence[int], replay: Callable[[], None]) -> None:
        """Run `replay` without changing any gradient."""
        before = [self.places[i].clone() for i in reached]
        replay()
        if before:
            torch._foreach_copy_([self.places[i] for i in reached], before)


class Arriving:
    """Gradients that a backward pass makes one by one, added to fixed memory many at a time.

    By itself a pass adds each tensor alone, in two launches where it is in half precision and the sum is not. The
    numbers are the same, but for a weight that is read in several places of a network: what these make of it is summed
    in its own dtype.

    Args:
        weights: leaves of this pass, without gradients.
        places: where the gradient of each is added.

    Attributes:
        reached: which of the weights have had one, in the order in which they came.
    """

    def __init__(self, weights: Sequence[nn.Parameter], places: Sequence[Tensor]) -> None:
        self.reached: list[int] = []
        self._places = places
        self._held: list[tuple[Tensor, Tensor]] = []
        for number, weight in enumerate(weights):
            weight.register_post_accumulate_grad_hook(partial(self._arrived, number))

    def _arrived(self, number: int, weight: Tensor) -> None:
        assert weight.grad is not None, "the hook of a gradient that was just written"
        self.reached.append(number)
        self._held.append((self._places[number], weight.grad))
        weight.grad = None
        if sum(gradient.numel() for _, gradient in self._held) >= AT_ONCE:
            self.add()

    @torch.no_grad()
    def add(self) -> None:
        """What is still held; the last step of the pass."""
        alike: defaultdict[torch.dtype, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for place, gradient in self._held:
            alike[gradient.dtype].append((place, gradient))
        for dtype, pairs in alike.items():
            places, gradients = map(list, zip(*pairs, strict=True))
            wider = places[0].dtype
            torch._foreach_add_(places, gradients if dtype == wider else gathered(gradients, wider)[1])
        self._held.clear()
