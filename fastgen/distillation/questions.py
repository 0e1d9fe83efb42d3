"""Checks of objectives that ask the teacher with another prompt or class than the student (`context`, `instead`)."""

from ..config.schema import Config, StageConfig
from ..data.texts import instead
from ..errors import UserError
from ..models.pipelines.pipeline import Pipeline


def check_forgets(stage: StageConfig) -> None:
    """Refuse, before anything is loaded, an objective that forgets but does not say what.

    Raises:
        UserError: naming the stage and the setting.
    """
    needs = stage.objective.needs
    if needs.forgets and not needs.instead:
        raise UserError(
            f"stage {stage.name!r} forgets, but its objective.instead is {{}}, and what forgets nothing is sid: name "
            "what is to be forgotten and what the teacher is asked in its place (objective.instead={'3': '5'}), or "
            "choose objective sid"
        )


def check_questions(stage: StageConfig, config: Config, pipeline: Pipeline) -> None:
    """Refuse a `context` for a teacher without prompts, and to forget what no prompt or class asks for.

    Raises:
        UserError: naming the stage and what it does not find.
    """
    needs, kind = stage.objective.needs, type(pipeline.pipe).__name__
    if needs.context and pipeline.kind != "prompt":
        raise UserError(
            f"stage {stage.name!r} asks its teacher in other words, but {kind} takes no prompts: choose a teacher that "
            "does"
        )
    if not needs.instead:
        return
    if pipeline.kind == "none":
        raise UserError(f"stage {stage.name!r} is to forget what {kind} is never asked for: choose objective sid")
    (_check_classes if pipeline.kind == "label" else _check_words)(stage, config, pipeline)


def _check_classes(stage: StageConfig, config: Config, pipeline: Pipeline) -> None:
    known = [str(one) for one in pipeline.classes]
    unknown = [one for pair in stage.objective.needs.instead for one in pair if one not in known]
    if unknown:
        raise UserError(
            f"stage {stage.name!r} has {unknown[0]!r} in objective.instead, but the teacher's classes are {known[0]} "
            f"to {known[-1]}: name them by these numbers, in quotes"
        )


def _check_words(stage: StageConfig, config: Config, pipeline: Pipeline) -> None:
    others, captions = stage.objective.needs.instead, config.data.captions
    for one, other in others:
        if captions is not None and not any(one in text for text in captions.texts):
            raise UserError(
                f"stage {stage.name!r} is to forget {one!r} (objective.instead), which stands in no prompt, so that "
                "nothing would be forgotten: write it as the prompts do, or leave it out"
            )
        if instead(other, others) != other:
            raise UserError(
                f"stage {stage.name!r} asks for {other!r} in the place of {one!r} (objective.instead), where words "
                "that are to be forgotten stand again: name something that is kept"
            )
