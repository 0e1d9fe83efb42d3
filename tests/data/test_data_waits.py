"""A data source that does not answer ends in an error that says where it stands, at once asked ahead or not."""

import threading

import pytest
import small_run
import tiny

from fastgen.data import Loader
from fastgen.engine.feed import Feed
from fastgen.errors import SilentError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import Needs


class Stuck(small_run.Stripes):
    """A source that answers no more from its second batch on, until it is let go."""

    def items(self, indices):
        self.asked.append(indices)
        if len(self.asked) > 1:
            self.free.wait(20)
        return super().items(indices)


@pytest.fixture
def source():
    stuck = Stuck()
    object.__setattr__(stuck, "asked", [])
    object.__setattr__(stuck, "free", threading.Event())
    yield stuck
    stuck.free.set()


def test_a_source_that_does_not_answer_is_named_with_where_it_stands(source):
    loader = Loader(source, seed=0, patience_s=0.2)
    loader.take(0, 2)
    with pytest.raises(SilentError, match=r"nothing for 0.2 s.*2 to 3 .*test_data_waits.py:\d+ in items"):
        loader.take(2, 2)


def test_reading_ahead_is_not_waited_for_twice(source):
    pipeline = Pipeline(tiny.class_conditional())
    feed = Feed(pipeline, Loader(source, seed=0, patience_s=0.2), small_run.CPU, Needs(images=True))
    feed.prepare(0, 2)
    with pytest.raises(SilentError, match="has given nothing"):
        feed.prepare(2, 2)
