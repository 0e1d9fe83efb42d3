"""Checks that every setting of a run is read by something."""

from pathlib import Path

from ..config.schema import Config
from ..models.pipelines.pipeline import Pipeline
from ..objectives import roles_of
from ..unread import names_of, refuse_unread


def check_settings_read(config: Config) -> None:
    """Refuses, before anything is loaded, settings that neither the stages, nor their data, nor their roles read.

    What one stage reads may stand in all of them, so that `train` at the top can hold it.

    Raises:
        UnreadError: naming the setting, why nothing reads it, and the remedy.
    """
    _check_networks(config)
    _check_outside_of_stages(config)
    _check_training(config)


def check_teacher_settings_read(config: Config, pipeline: Pipeline) -> None:
    """Refuses, before anything is trained, settings about prompts or classes that this teacher does not take.

    Raises:
        UnreadError: naming the setting, what the teacher takes, and the remedy.
    """
    taken = {"none": "neither prompts nor classes", "label": "classes", "prompt": "prompts"}[pipeline.kind]
    why, remedy = f"{type(pipeline.pipe).__name__} takes {taken}", "choose another teacher"
    if pipeline.kind != "prompt":
        refuse_unread(config, "caption_dropout", why=why, remedy=remedy)
        refuse_unread(config.teacher, "negative_prompt", why=why, remedy=remedy, within="teacher.")
    if pipeline.kind != "label":
        refuse_unread(config.teacher, "num_classes", "null_label", why=why, remedy=remedy, within="teacher.")


def _check_networks(config: Config) -> None:
    """Checks the settings of networks: adapters, the teacher's files, what the generator starts from."""
    lora, path = config.lora, config.teacher.path
    if config.sharing == "full" and "sharing" not in config.model_fields_set:  # full, if given, may keep it for later
        why = "sharing is full where it is not given, and no role has an adapter"
        refuse_unread(lora, *names_of(lora), why=why, remedy="set sharing=lora", within="lora.")
    if config.sharing == "scores":
        why = "under sharing=scores the student is a whole network"
        refuse_unread(lora, "keys", why=why, remedy="set sharing=lora", within="lora.")
    if path is not None and Path(path).is_dir():
        why, remedy = f"teacher.path {path} is a folder", "give a hub id or a single file"
        refuse_unread(config.teacher, "config", "revision", why=why, remedy=remedy, within="teacher.")
    starts = config.stages[0].carry
    if starts.get("generator") == "teacher" and "generator" not in starts.values():
        why = "the first stage carries its generator from the teacher"
        refuse_unread(config, "init", why=why, remedy="let it go on from the student")


def _check_outside_of_stages(config: Config) -> None:
    """Checks the settings of the data, the student and the report."""
    if not config.data.has_images:
        refuse_unread(config, "flip", why="the data source has no images", remedy="choose one that does")
    if not any("w" in stage.objective.needs.scalars_of("generator") for stage in config.stages):
        why, remedy = "no stage trains a generator that is told its guidance", "set the guidance of the objective"
        refuse_unread(config.student, "guidance", why=why, remedy=remedy, within="student.")
    protocol = config.evaluate.protocol
    if protocol not in ("none", "digits"):  # under none nothing of the section is read, and it may stay
        why = f"under evaluate.protocol={protocol} the report has no row of the teacher"
        names, remedy = ("teacher_steps", "teacher_guidance"), "set evaluate.protocol=digits"
        refuse_unread(config.evaluate, *names, why=why, remedy=remedy, within="evaluate.")


def _check_training(config: Config) -> None:
    """Checks the training settings that all stages have, where no stage reads them."""
    stages = config.stages
    trained = [(stage.train, role) for stage in stages for role in roles_of(stage.objective)]
    several_turns = any(len(stage.objective.cycle) > 1 for stage in stages)
    averaged = any(stage.train.ema is not None for stage in stages)
    muon = any(train.optim_of(role).name == "muon" for train, role in trained)
    for train, role in trained:
        if not several_turns:
            why, remedy = "no stage has several turns that could share a batch", "choose an objective that does"
            refuse_unread(train, "reuse", why=why, remedy=remedy, within="train.")
        if not averaged:
            refuse_unread(train, "ema_device", why="no stage keeps an average", remedy="set train.ema", within="train.")
        if not muon:
            section = f"train.roles.{role}." if "momentum" in train.roles.get(role, {}) else "train.optim."
            why, remedy = "it is Muon's, which no role has", f"set {section}name=muon"
            refuse_unread(train.optim_of(role), "momentum", why=why, remedy=remedy, within=section)
