"""A training loop without fastgen, as one writes it by hand: what the hardware gives the same calls of a network."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .networks import Size
from .trio import Setting
from .watches import Watch, flops, medians, peak


def plain_loop(size: Size, setting: Setting, device: torch.device, *, cycles: int, warmup: int) -> dict[str, object]:
    """Seconds, FLOPs and memory of the trio's calls on one network in bf16: no adapters, optimizers or losses.

    A generator turn is a forward and backward pass beside one forward pass of the fake and, guided, two of the real
    score, a fake turn one beside a forward pass of the generator. The weights are frozen where roles share them.
    """
    dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
    net = size.built(device, dtype).requires_grad_(setting.sharing == "full")
    if setting.checkpointing:
        net.enable_gradient_checkpointing()  # type: ignore[operator]
    call = _call(net, size, setting.batch, device, dtype)
    watch, taken = Watch(device), []

    def cycle() -> None:
        watch.mark("start")
        _turn(net, call, looks=3 if setting.guidance != 1 else 2)
        watch.mark("generator")
        for _ in range(setting.fake_turns):
            _turn(net, call, looks=1)
            watch.mark("fake_score")

    peak(device)
    for number in range(warmup + cycles):
        cycle()
        laps = watch.laps()
        taken += [laps] if number >= warmup else []
    most = peak(device)
    return {"seconds": medians(taken), "flops": flops(cycle), "peak_gib": most}


def _turn(net: nn.Module, call: Callable[[], Tensor], *, looks: int) -> None:
    with torch.no_grad():
        for _ in range(looks):
            call()
    call().square().mean().backward()
    net.zero_grad(set_to_none=True)


def _call(net: nn.Module, size: Size, batch: int, device: torch.device, dtype: torch.dtype) -> Callable[[], Tensor]:
    x = torch.randn((batch, *size.shape), device=device, dtype=dtype, requires_grad=True)
    t, told = torch.full((batch,), 500.0, device=device), size.rows(batch, dtype).to(device).kwargs

    def call() -> Tensor:
        output: Tensor = net(x, t, **told, return_dict=False)[0]
        return output.float()

    return call
