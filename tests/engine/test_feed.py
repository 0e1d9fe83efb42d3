"""What is read ahead is what would be read when it is asked for."""

import pytest
import small_run
import tiny
import torch
from families import FAMILIES

from fastgen.data import Items, Loader, PromptFile
from fastgen.engine.feed import Feed, PairSet, asked_instead
from fastgen.engine.stage import Stage, Turned
from fastgen.errors import UserError
from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.objectives import DMD2, Batch, Needs
from fastgen.objectives.parts.gan import GAN
from fastgen.seeds import stream


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(tiny.class_conditional())


def feed(pipeline: Pipeline, needs: Needs) -> Feed:
    loader = Loader(small_run.Stripes(), seed=0)
    noise = torch.randn((2, 16, *pipeline.shape), generator=torch.Generator().manual_seed(1))
    return Feed(pipeline, loader, small_run.CPU, needs, PairSet(*noise, loader) if needs.pairs else None)


def batch(of: Feed, position: int) -> Batch:
    return of.batch(position, 4, rng=stream(small_run.CPU, 1), shared_rng=stream(small_run.CPU, 2))


@pytest.mark.parametrize("needs", [Needs(images=True), Needs(images=True, pairs=True), Needs()])
def test_a_batch_that_was_read_ahead_is_the_same(pipeline: Pipeline, needs: Needs):
    plain, ahead = feed(pipeline, needs), feed(pipeline, needs)
    for position, prepared in ((0, ()), (4, (4,)), (8, (4, 8)), (12, (16,)), (14, (14, 14))):
        for place in prepared:
            ahead.prepare(place, 4)
        wanted, got = batch(plain, position), batch(ahead, position)
        assert torch.equal(got.cond.kwargs["class_labels"], wanted.cond.kwargs["class_labels"])
        assert (got.real is None, got.pairs is None) == (not needs.images, not needs.pairs)
        if needs.images:
            assert torch.equal(got.x0, wanted.x0)
        if needs.pairs:
            assert torch.equal(got.pair.eps, wanted.pair.eps)
            assert torch.equal(got.pair.x0, wanted.pair.x0)


def test_a_context_is_asked_for_row_by_row(tmp_path):
    pipeline, file = Pipeline(FAMILIES["stable_diffusion"].build()), tmp_path / "prompts.txt"
    file.write_text("a fox\ntwo\n", encoding="utf-8")
    loader, needs = Loader(PromptFile(path=file), seed=0), Needs(context="a {} of clay")
    found = batch(Feed(pipeline, loader, small_run.CPU, needs), 0)
    prompts = loader.take(0, 4).prompts
    for cond, words in ((found.cond, "{}"), (found.context, "a {} of clay")):
        wanted = pipeline.condition(4, prompts=[words.replace("{}", prompt) for prompt in prompts])
        assert torch.equal(cond.kwargs["encoder_hidden_states"], wanted.kwargs["encoder_hidden_states"])
    assert not torch.equal(found.cond.kwargs["encoder_hidden_states"], found.context.kwargs["encoder_hidden_states"])
    assert batch(Feed(pipeline, loader, small_run.CPU, Needs()), 0).changed is None


def test_the_teacher_is_asked_for_something_else_where_that_is_to_be_forgotten(pipeline: Pipeline):
    others = (("6", "4"), ("4", "7"))
    got = batch(feed(pipeline, Needs(instead=others)), 0)
    asked, taught = (cond.kwargs["class_labels"].tolist() for cond in (got.cond, got.taught))
    assert 6 in asked
    assert taught == [{6: 4, 4: 7}.get(label, label) for label in asked]
    plain = batch(feed(pipeline, Needs()), 0)
    assert plain.kept is None
    assert plain.taught is plain.cond


def test_words_are_replaced_wherever_they_stand_in_a_prompt():
    items = Items(prompts=("a fox", "a red fox and a hen", "two hens"))
    assert asked_instead(items, [("fox", "dog"), ("red ", "")]).prompts == ("a dog", "a dog and a hen", "two hens")


def small_stage(pipeline: Pipeline) -> Stage:
    return small_run.stage(pipeline, DMD2(gan=GAN(), ratio=2, rollout="one_step"), micro_batch=2)


def test_the_next_cycle_is_read_before_this_one_is_waited_for(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """And with that no batch is read twice, or out of its place in the stream."""
    happened: list[object] = []
    stage, read, figures = small_stage(pipeline), Loader.take, Turned.figures.func
    monkeypatch.setattr(Loader, "take", lambda self, at, count: happened.append(at) or read(self, at, count))
    monkeypatch.setattr(Turned, "figures", property(lambda self: happened.append(self.turn[0]) or figures(self)))
    for _ in range(2):
        stage.cycle()
    read_or_waited = ["waited" if isinstance(one, str) else one for one in happened]
    assert [one for one in read_or_waited if one != "waited"] == [*range(0, 24, 2), 24]
    first, second = read_or_waited.index("waited"), len(read_or_waited) - 1 - read_or_waited[::-1].index(24)
    assert read_or_waited[first - 1] == 12
    assert set(read_or_waited[second + 1 :]) == {"waited"}


def test_a_sample_that_cannot_be_read_stops_its_own_cycle(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch):
    stage, items = small_stage(pipeline), Loader._load

    def load(self: Loader, positions: range, images: bool) -> Items:
        if positions.start >= 12:
            raise UserError("damaged")
        return items(self, positions, images)

    monkeypatch.setattr(Loader, "_load", load)
    assert stage.cycle()
    assert stage.position.cycle == 1
    with pytest.raises(UserError, match="damaged"):
        stage.cycle()


def test_nothing_is_read_ahead_of_a_stage_that_is_over(pipeline: Pipeline):
    stage = small_stage(pipeline)
    short = stage.config.train.model_copy(update={"images": 4})
    stage.config = stage.config.model_copy(update={"train": short})
    stage.cycle()
    assert stage.done
    assert stage.feed._ahead is None
