"""What was read from a pipeline, held against what the pipeline does."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...process import Time
from ..casting import dtype_of
from ..conditioning import Conditioning
from ..denoiser import NetworkDenoiser
from ..layout import differing
from .refusal import PLAIN_LOOP, failure
from .watch import Step, first_value

TOLERANCE = 1e-4
_PLAIN_GUIDANCE = "use a pipeline class that by default guides by the plain formula, without guidance_rescale"
_OWN_ROWS = "use a network that treats every sample of a batch by itself"


@dataclass(frozen=True)
class Evidence:
    """A recording of two samples that ask for different things, and what they asked for.

    Args:
        seen: steps of the call.
        together: conditioning of both samples, captured in one call.
        single: conditioning of the first sample, captured alone.
        deterministic: the scheduler walked from x_t to x_s along x0 and eps as the network sees them.
    """

    seen: list[Step]
    together: Conditioning
    single: Conditioning
    deterministic: bool


def self_test(name: str, denoiser: NetworkDenoiser, evidence: Evidence) -> None:
    """Replay, different times and prompts in one batch, a gradient to x_t, and the step between two times.

    No graph is kept but that of one sample at a time, for the gradient: at real size a test must need less memory than
    training. The network's parameters are frozen.

    Raises:
        UserError: a check fails; it names the pipeline, the check and the measured difference.
    """
    if tolerance(denoiser.net) > TOLERANCE:
        denoiser = _with_rounded_times(denoiser, evidence.seen)
    row, seen = denoiser.reading.row, evidence.seen
    times = [_times(denoiser, step) for step in seen]
    with torch.no_grad():
        beliefs = [denoiser(s.sample.float(), t, evidence.together) for s, t in zip(seen, times, strict=True)]
    for step, belief in zip(seen, beliefs, strict=True):
        compare(name, "replay of the recorded call", belief.output(row), step.model_output, denoiser)
    if evidence.deterministic:
        for step, belief, s in zip(seen, beliefs, times[1:], strict=False):
            compare(name, "the scheduler's step from one time to the next", belief.at(s), step.stepped, denoiser)
    _test_mixed_batch(name, denoiser, evidence, times)


def _test_mixed_batch(name: str, denoiser: NetworkDenoiser, evidence: Evidence, times: list[Time]) -> None:
    seen = evidence.seen
    x, t = torch.cat([s.sample[:1] for s in seen]).float(), torch.cat([u[:1] for u in times])
    check = "a prompt alone is told as it is among others"
    told = differing(evidence.single.shared, evidence.together.shared)
    if told:
        measured = f"of what all samples share, {' and '.join(told)} depend on the prompts beside"
        raise failure(name, check, measured, remedy=_OWN_ROWS)
    with torch.no_grad():
        alone = denoiser(x[:1], t[:1], evidence.single).output(denoiser.reading.row)
    compare(name, check, alone, seen[0].model_output[:1], denoiser, remedy=_OWN_ROWS)
    first = evidence.together.index(torch.tensor([0]))
    rows = Conditioning.cat([evidence.single, *[first] * (len(seen) - 1)])
    with torch.no_grad():
        mixed = denoiser(x, t, rows).output(denoiser.reading.row)
    recorded = torch.cat([s.model_output[:1] for s in seen])
    compare(name, "a batch of different times and prompts", mixed, recorded, denoiser, remedy=_OWN_ROWS)
    for i in range(len(seen)):
        _test_gradient(name, denoiser, x[i : i + 1], t[i : i + 1], rows.index(torch.tensor([i])))


def _test_gradient(name: str, denoiser: NetworkDenoiser, x: Tensor, t: Time, cond: Conditioning) -> None:
    """Checks that a gradient reaches the sample; of one, since a graph of several would hold all of them in memory."""
    x = x.clone().requires_grad_()
    output = denoiser(x, t, cond).output(denoiser.reading.row)
    gradient = torch.autograd.grad(output.square().sum(), x, allow_unused=True)[0] if output.requires_grad else None
    if gradient is None or not gradient.isfinite().all() or not gradient.any():
        raise failure(name, "a gradient reaches the sample", "it is zero or not finite")


def fitting_guidance(name: str, denoiser: NetworkDenoiser, step: Step, cond: Conditioning, *, w: float) -> bool:
    """Whether guided outputs get the conditional ones' norm back; decided by a guided step of the pipeline.

    Raises:
        UserError: the pipeline guides in neither of the known ways.
    """
    rows, row = cond.size, denoiser.reading.row  # DiT's loop carries every sample twice
    x, t, guided = step.sample[:rows].float(), _times(denoiser, step)[:rows], step.model_output[:rows]
    with torch.no_grad():
        plain, null = (denoiser(x, t, half) for half in (cond, cond.unconditional))
    gaps = {}
    for rescaled in (False, True):
        model = NetworkDenoiser(denoiser.net, denoiser.reading, replace(denoiser.form, rescaled=rescaled))
        gaps[rescaled] = difference(model.guide(plain, null, w).output(row), guided)
    best = min(gaps, key=gaps.__getitem__)
    if not gaps[best] <= tolerance(denoiser.net):
        check, measured = "guidance is uncond + w (cond - uncond)", f"the relative difference is {gaps[best]:.2g}"
        raise failure(name, check, measured, remedy=_PLAIN_GUIDANCE)
    return best


def _with_rounded_times(denoiser: NetworkDenoiser, seen: list[Step]) -> NetworkDenoiser:
    """The same network, told the very timesteps of the recording, which a half precision loop has rounded."""
    form = denoiser.form
    said = torch.tensor([first_value(step.calls[-1].arguments[form.timestep]) for step in seen])
    times = torch.cat([_times(denoiser, step)[:1] for step in seen])

    def recorded(t: Time) -> torch.Tensor:
        return said.double()[(t.cpu()[:, None] - times).abs().argmin(dim=1)]

    reading = replace(denoiser.reading, timestep=recorded)
    return NetworkDenoiser(denoiser.net, reading, replace(form, basis="timestep", slope=1.0, offset=0.0))


def _times(denoiser: NetworkDenoiser, step: Step) -> Time:
    return denoiser.reading.time(torch.full((len(step.sample),), step.timestep, dtype=torch.float64))


def tolerance(net: nn.Module) -> float:
    """Relative difference that a check allows: 1e-4 in fp32, a few roundings in half precision."""
    return max(TOLERANCE, 8 * torch.finfo(dtype_of(net)).eps)


def compare(
    name: str, check: str, ours: Tensor, theirs: Tensor, denoiser: NetworkDenoiser, *, remedy: str = PLAIN_LOOP
) -> None:
    """Raises the failure of a check whose relative difference is above 1e-4 (in fp32)."""
    gap, allowed = difference(ours, theirs), tolerance(denoiser.net)
    if not gap <= allowed:
        raise failure(name, check, f"the relative difference is {gap:.2g}, allowed {allowed:g}", remedy=remedy)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).detach().abs().max() / theirs.abs().max().clamp(min=1e-6))
