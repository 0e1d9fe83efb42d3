"""The student while it is made: the schedulers it will be sampled with, its grids and its samples."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..config.schema import Config
from ..data import Items
from ..engine.dtypes import base_of, teacher_dtype
from ..export.held import NetworkTimes
from ..export.scheduler_export import SchedulerExport, scheduler_exports
from ..export.stops import stops_of
from ..models.adapters import alias
from ..models.casting import renewed
from ..models.conditioning import Conditioning
from ..models.contract import Denoiser
from ..models.denoiser import NetworkDenoiser
from ..models.head_bank import HEADS, Headed, last_linear
from ..models.made import Made, in_float32
from ..models.merging import adding
from ..models.pipelines.arguments import in_turn
from ..models.pipelines.canonical import reading_of
from ..models.pipelines.components import denoiser_name, denoisers_of, network_of
from ..models.pipelines.heads import StepHeads
from ..models.pipelines.notes import Stop
from ..models.pipelines.pipeline import Pipeline
from ..models.pipelines.teacher import held_exactly, load_teacher
from ..models.walk import Plan, sample, scalars_at
from ..process import Flow, from_scheduler
from ..sampling.sampler import SAMPLES_AT_ONCE, ode, seeded_noise

BESIDE = 16 * 64 * 64  # values that are drawn at once beside a training run


class Student:
    """What a run makes of its teacher.

    Args:
        config: settings of the run.
        pipeline: the teacher.
        device: device of the networks; the teacher's where not given.

    Raises:
        UserError: no stock scheduler samples as the config asks; names the step counts that work.
    """

    def __init__(self, config: Config, pipeline: Pipeline, device: torch.device | None = None) -> None:
        self.config, self.pipeline, self.device = config, pipeline, device or pipeline.pipe.device
        with pipeline.encoder.awake():
            self.schedules = scheduler_exports(
                pipeline.pipe.scheduler,
                config.student.steps,
                sampler=config.student.sampler,
                emitted=pipeline.emitted,
                shift=config.student.shift,
                network_times=_network_times(pipeline),
            )
            found = {n: self._stops(schedule, n) for schedule in self.schedules for n in schedule.steps}
        self.stops: dict[int, tuple[Stop, ...]] = {n: found[n] for n in config.student.steps}
        grids = [torch.tensor([s.time for s in stops], dtype=torch.float64) for stops in self.stops.values()]
        self.plan = Plan(grids, config.student.sampler, boundary=pipeline.boundary)

    def generator(self, weights: Mapping[str, Tensor]) -> NetworkDenoiser | Headed:
        """A generator in a network of its own, with the weights that a stage left, for the first step count."""
        trained, grid = self.trained(weights), self.plan.grids[0]
        heads = self.heads(weights, trained)
        model = self.pipeline.speaking(trained.whole(self.device))
        if heads is None or len(grid) == 1:
            return model
        return Headed(model, dict(zip(grid.tolist(), heads.weights[len(grid)], strict=True)))

    def heads(self, weights: Mapping[str, Tensor], trained: Made) -> StepHeads | None:
        """The last layer of each step, if the stage left one for each; `trained` is what `self.trained` returned."""
        others = {int(name.removeprefix(HEADS)): value for name, value in weights.items() if name.startswith(HEADS)}
        if not others:
            return None
        name = last_linear(trained.like)
        own = trained[f"{name}.weight"].cpu()
        layer = f"{denoiser_name(self.pipeline.pipe)}.{name}"
        return StepHeads(layer, {n: own + value for n, value in others.items()})

    def trained(self, weights: Mapping[str, Tensor]) -> Made:
        """A stock network in float32 with the weights that a stage left, made tensor by tensor."""
        weights = {name: value for name, value in weights.items() if not name.startswith(HEADS)}
        if self.config.sharing == "lora":
            return Made(self._unrounded_teacher(), in_float32).then(adding(weights, alpha=self.config.lora.alpha))
        net = alias(self.pipeline.start)
        net.load_state_dict(weights, assign=True)
        return Made(net, in_float32)

    def teacher_network(self) -> nn.Module:
        """The teacher's network in float32, in tensors of its own in main memory."""
        return renewed(alias(self._unrounded_teacher()), lambda path, tensor: in_float32(path, tensor.cpu()).clone())

    def _unrounded_teacher(self) -> nn.Module:
        """The teacher's network, read anew from its files if the run holds it in fewer bits."""
        config, network = self.config, self.pipeline.network
        as_loaded = teacher_dtype(config) == torch.float32 and (config.sharing != "lora" or base_of(config) == "fp32")
        pipe = self.pipeline.pipe
        if as_loaded or config.teacher.path is None or held_exactly(config.teacher.source, pipe, teacher_dtype(config)):
            return network
        source = replace(config.teacher.source, dtype="fp32")
        others = {name: part for name, part in pipe.components.items() if name not in denoisers_of(pipe)}
        whole: nn.Module = network_of(load_teacher(source, device="cpu", parts=others))
        return whole

    def batches(self, count: int) -> list[range]:
        """The numbers 0 .. `count` - 1 of samples, as they are drawn together beside a training run."""
        at_once = max(1, min(SAMPLES_AT_ONCE, BESIDE // torch.Size(self.pipeline.shape).numel()))
        return [range(start, min(start + at_once, count)) for start in range(0, count, at_once)]

    def drawn(self, model: Denoiser, numbers: range) -> Tensor:
        """Samples of these numbers, which are their seeds."""
        return self.sample(model, self.condition(numbers), seeds=numbers)

    def pictures(self, samples: Tensor) -> Tensor:
        """Samples as pictures [B, C, H, W] in [-1, 1], of a video its middle frame."""
        images = self.pipeline.codec.decode(samples)
        return images if images.ndim == 4 else images[:, :, images.shape[2] // 2]

    def condition(self, numbers: Sequence[int]) -> Conditioning:
        """What the samples of these numbers are asked for, as networks are told it."""
        asked = self.asked(numbers)
        return self.pipeline.condition(len(numbers), labels=asked.labels, prompts=asked.prompts)

    @property
    def classes(self) -> Sequence[int]:
        """The labels that it is trained on."""
        only = self.config.only
        return self.pipeline.classes if only is None or only.classes is None else only.classes

    def asked(self, numbers: Sequence[int]) -> Items:
        """What the samples of these numbers are asked for: its classes in turn, or its prompts in turn."""
        if self.pipeline.kind == "label":
            return Items(labels=torch.tensor(in_turn(self.classes, numbers)))
        prompts = self.config.prompts
        return Items(prompts=tuple(in_turn(prompts, numbers)) if prompts else None)

    def sample(self, model: Denoiser, cond: Conditioning, *, seeds: Sequence[int]) -> Tensor:
        """Samples at the first declared step count, as the exported pipeline draws them."""
        plan = self.plan.on(model.process)
        noise, times = seeded_noise(seeds, self.pipeline.shape, self.device), plan.grids[0].tolist()
        told = scalars_at(times, model.scalars, sampler=plan.sampler, guidance=self.config.student.guidance)
        return sample(model, noise, cond.to(self.device), times, sampler=plan.sampler, scalars=told)

    def sample_teacher(
        self, model: Denoiser, cond: Conditioning, *, seeds: Sequence[int], steps: int, guidance: float
    ) -> Tensor:
        """Samples of the teacher's deterministic sampler from the same noise."""
        noise = seeded_noise(seeds, self.pipeline.shape, self.device)()
        return ode(model, noise, cond.to(self.device), self.pipeline.teacher_grid(steps).tolist(), guidance=guidance)

    def _stops(self, schedule: SchedulerExport, steps: int) -> tuple[Stop, ...]:
        return stops_of(reading_of(schedule.scheduler), self.pipeline.emitted(schedule.scheduler, steps))


def _network_times(pipeline: Pipeline) -> NetworkTimes | None:
    """What the network is told of a flow's times; other families' stops are fixed by their training."""
    if not isinstance(from_scheduler(pipeline.pipe.scheduler).process, Flow):
        return None
    ends = pipeline.form.timestep_at(pipeline.reading, torch.tensor([0.0, 1.0], dtype=torch.float64))
    return NetworkTimes(float(ends[1] - ends[0]), float(ends[0]), pipeline.told_in_bf16)
