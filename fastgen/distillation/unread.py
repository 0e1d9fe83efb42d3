"""Settings of a run that nothing of it reads: what is asked for and would not be done is refused, not ignored."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel

from ..config.schema import Config
from ..errors import UserError
from ..models.pipelines.pipeline import Pipeline
from ..objectives import roles_of


class Reason(NamedTuple):
    """What leaves settings without a reader, and the remedy, which would give them one."""

    why: str
    remedy: str


class Rule(NamedTuple):
    """Settings that are read on a condition.

    Attributes:
        section: path of their mapping with a dot at its end, "" at the top.
        settings: the mapping.
        names: of the settings.
        read: whether something of the run reads them.
        reason: why nothing does, where that is so.
    """

    section: str
    settings: BaseModel
    names: tuple[str, ...]
    read: bool
    reason: Reason


def check_settings_read(config: Config) -> None:
    """Refuses, before anything is loaded, settings that neither the stages, nor their data, nor their roles read.

    What one stage reads may stand in all of them, so that `train` at the top can hold it.

    Raises:
        UserError: naming the setting, why nothing reads it, and the remedy.
    """
    _refuse(_of_the_run(config))
    _refuse(_of_its_stages(config))


def check_unasked(config: Config, pipeline: Pipeline) -> None:
    """Refuses, before anything is trained, settings of how a teacher is asked that is not asked so.

    Raises:
        UserError: naming the setting, what the teacher takes, and the remedy.
    """
    prompts, classes = pipeline.kind == "prompt", pipeline.kind == "label"
    taken = {"none": "neither prompts nor classes", "label": "classes", "prompt": "prompts"}[pipeline.kind]
    other = Reason(f"{type(pipeline.pipe).__name__} takes {taken}", "choose another teacher")
    _refuse(
        [
            Rule("", config, ("caption_dropout",), prompts, other),
            Rule("teacher.", config.teacher, ("negative_prompt",), prompts, other),
            Rule("teacher.", config.teacher, ("num_classes", "null_label"), classes, other),
        ]
    )


def _of_the_run(config: Config) -> Iterator[Rule]:
    lora, protocol = config.lora, config.evaluate.protocol
    said = config.sharing != "full" or "sharing" in config.model_fields_set  # full, if given, may keep lora for later
    whole = Reason("sharing is full where it is not given, and no role has an adapter", "set sharing=lora")
    yield Rule("lora.", lora, tuple(type(lora).model_fields), said, whole)
    scores = Reason("under sharing=scores the student is a whole network", "set sharing=lora")
    yield Rule("lora.", lora, ("keys",), config.sharing != "scores", scores)
    blind = Reason("the data source has no images", "choose one that does")
    yield Rule("", config, ("flip",), config.data.has_images, blind)
    here = config.teacher.path is not None and Path(config.teacher.path).is_dir()
    folder = Reason(f"teacher.path {config.teacher.path} is a folder", "give a hub id or a single file")
    yield Rule("teacher.", config.teacher, ("config", "revision"), not here, folder)
    starts = dict(config.stages[0].carry)
    begun = starts.get("generator") != "teacher" or "generator" in starts.values()
    anew = Reason("the first stage carries its generator from the teacher", "let it go on from the student")
    yield Rule("", config, ("init",), begun, anew)
    guided = any("w" in stage.objective.needs.scalars_of("generator") for stage in config.stages)
    untold = Reason("no stage trains a generator that is told its guidance", "set the guidance of the objective")
    yield Rule("student.", config.student, ("guidance",), guided, untold)
    reported = protocol in ("none", "digits")  # under none nothing of the section is read, and it may stay
    alone = Reason(
        f"under evaluate.protocol={protocol} the report has no row of the teacher", "set evaluate.protocol=digits"
    )
    yield Rule("evaluate.", config.evaluate, ("teacher_steps", "teacher_guidance"), reported, alone)


def _of_its_stages(config: Config) -> Iterator[Rule]:
    stages = config.stages
    turns = any(len(stage.objective.cycle) > 1 for stage in stages)
    averaged = any(stage.train.ema is not None for stage in stages)
    trained = [(stage.train, role) for stage in stages for role in roles_of(stage.objective)]
    muon = any(train.optim_of(role).name == "muon" for train, role in trained)
    single = Reason("no stage has several turns that could share a batch", "choose an objective that does")
    latest = Reason("no stage keeps an average", "set train.ema")
    for train in (stage.train for stage in stages):
        yield Rule("train.", train, ("reuse",), turns, single)
        yield Rule("train.", train, ("ema_device",), averaged, latest)
    for train, role in trained:
        section = f"train.roles.{role}." if "momentum" in train.roles.get(role, {}) else "train.optim."
        others = Reason("it is Muon's, which no role has", f"set {section}name=muon")
        yield Rule(section, train.optim_of(role), ("momentum",), muon, others)


def _refuse(rules: Iterable[Rule]) -> None:
    for section, settings, names, read, (why, remedy) in rules:
        for name in names:
            value = getattr(settings, name)
            if not read and value != type(settings).model_fields[name].get_default():
                raise UserError(
                    f"{section}{name} is {value}, but {why}, so that it would be ignored: {remedy}, or leave it out"
                )
