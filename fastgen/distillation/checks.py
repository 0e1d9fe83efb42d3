"""What is refused before anything is trained: stages, data and students that do not fit each other."""

import torch

from ..config.discriminator import reader_of
from ..config.schema import Config, StageConfig
from ..config.student import StudentConfig
from ..data.mixture import sources_in
from ..engine.dtypes import autocast_of, check_dtypes
from ..engine.frozen import frozen_in
from ..errors import UserError
from ..models.baking import TWO_TOLD
from ..models.head_bank import Intervals, ends_with_heads
from ..models.made import Made
from ..models.pipelines.halved import tells_apart
from ..models.pipelines.pipeline import Pipeline
from ..models.roles import DENOISERS
from ..models.scalars import find_time_embedding
from ..objectives import denoisers_of, roles_of
from ..process import Flow
from ..process.retold import retold
from .networks import check_network
from .offloading import check_memory
from .origins import check_origins
from .processes import check_processes
from .questions import check_forgets, check_questions
from .settings_read import check_settings_read, check_teacher_settings_read

STEPS = {"ode": "deterministic", "renoise": "renoised"}
"""How a student steps by its samplers, in words."""


def check_stages(config: Config) -> None:
    """Refuses, before anything is loaded, stages that cannot be trained on this data or cannot make this student.

    Raises:
        UserError: naming the stage, what it needs and how to give it.
    """
    check_dtypes(config)
    check_memory(config)
    check_network(config)
    for stage in config.stages:
        _check_sources(stage, config)
        _check_buckets(stage, config)
        _check_steps(stage, config.student)
        _check_scalars(stage, config)
        _check_settings(stage, config)
        check_forgets(stage)
        check_processes(stage, config)
    for number in range(len(config.stages)):
        check_origins(config, number)
    check_settings_read(config)
    last, steps = config.stages[-1], config.student.steps
    if last.objective.needs.one_step and steps != (1,):
        raise UserError(
            f"stage {last.name!r} trains one step only, but student.steps declares {', '.join(map(str, steps))}: set "
            "student.steps=[1], or end with a stage that trains every step (dmd2, or objective.rollout="
            "backward_simulation where the objective has a rollout)"
        )


def check_needs(config: Config, pipeline: Pipeline) -> None:
    """Refuses, before anything is trained, a teacher that lacks what an objective or the data ask of it.

    Raises:
        UserError: naming the stage, what it needs and how to give it.
    """
    check_teacher_settings_read(config, pipeline)
    for stage in config.stages:
        needs = stage.objective.needs
        if needs.null and not pipeline.has_null:
            raise UserError(
                f"stage {stage.name!r} uses guidance or drops conditions, but the teacher has no unconditional mode: "
                "set guidance to 1, and dropout or label_dropout to 0, or name its null class with teacher.null_label"
            )
        if needs.process == "flow" and not isinstance(retold(config.process, pipeline.reading.process), Flow):
            raise UserError(
                f"stage {stage.name!r} holds on the flow process only, and the teacher has another: set process=flow"
            )
        if needs.fine_times:
            _check_fine_times(stage, pipeline)
        if needs.scalars:
            _check_embeds_time(stage, pipeline)
        if needs.heads:
            _check_heads(stage, pipeline)
        check_questions(stage, config, pipeline)
        if needs.pairs and config.pairs.guidance != 1 and not pipeline.has_null:
            raise UserError(
                f"stage {stage.name!r} reads pairs under guidance {config.pairs.guidance:g}, but the teacher has no "
                "unconditional mode: set pairs.guidance=1, or name its null class with teacher.null_label"
            )
        _check_experts(stage, pipeline)
        for role in set(roles_of(stage.objective)).intersection(DENOISERS):
            frozen_in(role, pipeline.start if role == "generator" else pipeline.network, stage, config.sharing)
    _check_data(config, pipeline)


def _check_data(config: Config, pipeline: Pipeline) -> None:
    """Refuses data with prompts, or with other classes than the teacher has, where it does not take them."""
    if pipeline.kind == "none" and config.data.prompts is not None and not config.data.has_images:
        raise UserError(
            f"the data are prompts, but {type(pipeline.pipe).__name__} takes none: use data={{source: noise}}"
        )
    if pipeline.kind == "label" and config.data.num_classes not in (None, len(pipeline.classes)):
        raise UserError(
            f"the data has {config.data.num_classes} classes, the teacher {len(pipeline.classes)}: use the data that "
            "the teacher was trained on, or set teacher.num_classes if its folder does not say it right"
        )


def _check_experts(stage: StageConfig, pipeline: Pipeline) -> None:
    """Refuses what needs two networks of a pipeline of one, and what needs one of a pipeline of two."""
    name, needs = type(pipeline.pipe).__name__, stage.objective.needs
    if not pipeline.boundary:
        if needs.experts:
            raise UserError(
                f"stage {stage.name!r} trains an expert for each phase, but the {name} has one denoiser, and no stock "
                "pipeline could hold two: set objective.experts=false, or choose a teacher of two denoisers"
            )
        return
    if stage.train.sharding != "none":
        raise UserError(
            f"stage {stage.name!r} has train.sharding {stage.train.sharding}, but of the two denoisers of the {name} "
            "each process would call the one that its own times ask for: set train.sharding=none"
        )
    if "discriminator" in roles_of(stage.objective) and not needs.pixels:
        raise UserError(
            f"stage {stage.name!r} has a discriminator, which reads the features of one network, but the {name} has "
            "two denoisers: set objective.gan=0 where the objective allows it, or choose one without discriminator"
        )
    if needs.scalars_of("generator") or needs.heads:
        raise UserError(f"stage {stage.name!r} does not fit the {name}: {TWO_TOLD}")


def _check_embeds_time(stage: StageConfig, pipeline: Pipeline) -> None:
    """Refuses an objective that tells a role more than the time, of a network without a layer to tell it to."""
    try:
        for network in (pipeline.start, pipeline.network):
            find_time_embedding(network)
    except ValueError as error:
        raise UserError(
            f"stage {stage.name!r} tells its networks more than the time, but {error}: choose an objective that does "
            "not, such as dmd2 with step_aware=false"
        ) from error


def _check_heads(stage: StageConfig, pipeline: Pipeline) -> None:
    """Refuses heads of a network whose last linear layer is not the last thing that it does to each sample."""
    network = Made(pipeline.start).whole(next(pipeline.network.parameters()).device)
    halves = Intervals.of(pipeline.reading.process, torch.tensor([1.0, 0.5, 0.0], dtype=torch.float64))
    autocast = autocast_of(network, stage.train.precision, pipeline.told_in)
    model = pipeline.speaking(network, autocast=autocast, heads=halves)
    cond = pipeline.condition(1, labels=torch.tensor([0]), prompts=["a"]).index(torch.tensor([0, 0]))
    if not ends_with_heads(model, pipeline.shape, cond.to(next(network.parameters()).device)):
        raise UserError(
            f"stage {stage.name!r} has many heads in the place of {model.embeddings.layers[0]}, but in "
            f"{type(network).__name__} that is not the last thing done to each sample: choose another objective"
        )


def _check_fine_times(stage: StageConfig, pipeline: Pipeline) -> None:
    """Refuses derivatives of a network that under this precision takes neighbouring times for one."""
    if stage.train.precision == "fp32":
        return
    network = pipeline.network
    device = next(network.parameters()).device
    model = pipeline.speaking(network, autocast=autocast_of(network, stage.train.precision, pipeline.told_in))
    cond = pipeline.condition(1, labels=torch.tensor([0]), prompts=["a"]).index(torch.tensor([0, 0])).to(device)
    if not tells_apart(model, torch.zeros((2, *pipeline.shape), device=device), cond):
        raise UserError(
            f"stage {stage.name!r} takes derivatives by the time, but under train.precision={stage.train.precision} "
            f"the {type(pipeline.pipe).__name__} rounds the times that its network is told: set train.precision=fp32, "
            "or average over a step that is longer than its rounding (objective.derivative_step=0.03)"
        )


def _check_sources(stage: StageConfig, config: Config) -> None:
    """Refuses an objective without the images that it reads, or with the teachings of a network that knows nothing."""
    needs = stage.objective.needs
    if needs.images and not config.data.has_images:
        raise UserError(
            f"stage {stage.name!r} needs real images and the data source has none: use data.source folder, parquet or "
            "digits, or settings that read none (most GAN terms can be switched off: objective.gan=0)"
        )
    taught = needs.pairs or (needs.real_score and stage.carry.get("real_score", "teacher") == "teacher")
    if config.teacher.new is not None and taught:
        raise UserError(
            f"stage {stage.name!r} learns from the teacher, but teacher.new has random weights: train it in a run of "
            "its own and give its folder as teacher.path, with that run's config as teacher.recipe"
        )


def _check_buckets(stage: StageConfig, config: Config) -> None:
    """Refuses what holds for samples of one shape, where the data have several."""
    if not any(getattr(part, "buckets", None) for part in sources_in(config.data)):
        return
    rules = {
        "reads pairs, which are samples of one shape": stage.objective.needs.pairs,
        "measures distances of pictures of one shape": stage.objective.needs.lpips,
        "decodes pictures of one shape for its rewards": stage.objective.needs.rewards,
        "decodes pictures of one shape for its discriminator": stage.objective.needs.pixels,
        "shares the tokens of samples among processes": stage.train.sequence_parallel > 1,
    }
    for what, broken in rules.items():
        if broken:
            raise UserError(
                f"stage {stage.name!r} {what}, but data.buckets give samples of several: leave data.buckets out, or "
                "choose an objective or settings without it"
            )


def _check_steps(stage: StageConfig, student: StudentConfig) -> None:
    """Refuses a student that steps otherwise, or less often, than the stage's objective can train."""
    needs = stage.objective.needs
    if needs.sampler is not None and needs.sampler != student.sampler:
        raise UserError(
            f"stage {stage.name!r} trains {STEPS[needs.sampler]} steps, but student.sampler is {student.sampler}: set "
            f"student.sampler={needs.sampler}"
        )
    if min(student.steps) < needs.steps:
        raise UserError(
            f"stage {stage.name!r} needs at least {needs.steps} steps, but student.steps declares "
            f"{min(student.steps)}: declare more, or choose an objective of one step"
        )
    if max(student.steps) < needs.longest:
        raise UserError(
            f"stage {stage.name!r} holds few steps against more, but student.steps declares {max(student.steps)} at "
            "most: declare several numbers of steps, such as student.steps=[1,2,4]"
        )


def _check_scalars(stage: StageConfig, config: Config) -> None:
    """Refuses a student whose embeddings could not be baked into a stock network."""
    scalars, student = stage.objective.needs.scalars_of("generator"), config.student
    if "s" in scalars and len(student.steps) > 1:
        raise UserError(
            f"stage {stage.name!r} trains a generator that is told where a step leads, which a stock pipeline knows of "
            f"one step count only, but student.steps declares {', '.join(map(str, student.steps))}: declare one"
        )
    if "w" in scalars and student.guidance is None:
        raise UserError(
            f"stage {stage.name!r} trains a generator that is told its guidance, which a stock pipeline does not tell "
            "it: choose the scale that it is exported with, such as student.guidance=8"
        )
    if scalars and config.sharing == "lora" and config.lora.rank < max(student.steps):
        raise UserError(
            f"lora.rank is {config.lora.rank}, but stage {stage.name!r} trains a generator that is told values at each "
            f"of its {max(student.steps)} stops, which become part of the LoRA: set lora.rank to at least "
            f"{max(student.steps)}"
        )


def _check_settings(stage: StageConfig, config: Config) -> None:
    """Refuses settings of a stage that would break off its training, or leave a role without any."""
    needs, trained, train = stage.objective.needs, roles_of(stage.objective), stage.train
    if needs.second_derivative and train.recomputed:
        raise UserError(
            f"stage {stage.name!r} has gan.r1, a second derivative, and train.gradient_checkpointing, which cannot "
            "compute one: use gan.approximate_r1, or switch the checkpointing off"
        )
    if needs.judged_from > (train.images - 1) // train.batch * train.batch:
        raise UserError(
            f"in stage {stage.name!r} a term of the generator's starts after {needs.judged_from} images, but "
            f"train.images={train.images} with train.batch={train.batch} ends before: lower the start (gan.start of a "
            "GAN, objective.start of a reward), or train for longer"
        )
    if needs.ratio_means and (train.micro_batch or train.batch) == 1:
        raise UserError(
            f"stage {stage.name!r} weighs samples of a micro-batch against each other, and train.micro_batch is 1: "
            "make it larger"
        )
    if (micro := train.micro_batch or train.batch) % needs.group:
        raise UserError(
            f"stage {stage.name!r} compares {needs.group} samples with each other, and a micro-batch has {micro}: set "
            f"train.batch and train.micro_batch to multiples of {needs.group}, or objective.group to a divisor"
        )
    if needs.follows and config.sharing == "scores":
        raise UserError(
            f"stage {stage.name!r} has stabilisers.follow, and under sharing=scores the fake score is a LoRA on the "
            "teacher and the generator a whole network, of which no LoRA is a mean: set sharing=full or sharing=lora, "
            "or leave follow out"
        )
    reader = reader_of(stage.discriminator, denoisers_of(stage.objective))
    learns = reader == "own" or reader in trained
    if "discriminator" in trained and stage.discriminator.heads == "mean" and not learns:
        raise UserError(
            f"stage {stage.name!r} has discriminator.heads=mean, without parameters, on a network that it does not "
            "train, so that nothing would learn to tell real from fake: set discriminator.heads=trained"
        )
