"""Which random generator a stock pipeline gives to its scheduler."""

import inspect

from ..models.pipelines.stock_pipeline import StockPipeline


def hands_generator_on(pipe: StockPipeline) -> bool:
    """Whether the pipeline's call passes its `generator` to `scheduler.step`, as its source says."""
    source = inspect.getsource(type(pipe).__call__)
    steps = [part.split(")")[0] for part in source.split("scheduler.step(")[1:]]
    return bool(steps) and all("generator" in step or "extra_step_kwargs" in step for step in steps)
