"""Parts that sleep in main memory: who is moved where, when."""

import pytest
import tiny
import torch
from torch import Tensor, nn

from fastgen.models.pipelines.pipeline import Pipeline
from fastgen.models.pipelines.waking import Sleepers, SleepingCodec

DEVICE = torch.device("cuda")


class Part(nn.Module):
    """A part that says where it is."""

    place = "cpu"

    def to(self, place: object) -> "Part":  # type: ignore[override]
        self.place = str(place)
        return self


class Codec:
    """A codec that tells where its autoencoder is when it is called."""

    def __init__(self, part: Part) -> None:
        self.part, self.seen = part, []

    def _call(self, x: Tensor) -> Tensor:
        self.seen.append(self.part.place)
        return x

    encode = decode = images_of = _call


def test_parts_are_awake_within_and_asleep_after_the_outermost():
    part = Part()
    sleepers = Sleepers([part], DEVICE)
    with sleepers.awake():
        with sleepers.awake():
            assert part.place == "cuda"
        assert part.place == "cuda"
    assert part.place == "cpu"


def test_parts_sleep_after_a_failure():
    part = Part()
    with pytest.raises(ValueError, match="broke"), Sleepers([part], DEVICE).awake():
        raise ValueError("broke")
    assert part.place == "cpu"


@pytest.mark.parametrize("call", ["encode", "decode", "images_of"])
def test_an_autoencoder_is_awake_while_it_is_called(call):
    part = Part()
    inner = Codec(part)
    getattr(SleepingCodec(inner, Sleepers([part], DEVICE)), call)(torch.zeros(1))
    assert inner.seen == ["cuda"]
    assert part.place == "cpu"


def test_an_autoencoder_that_a_graph_leads_through_stays_awake():
    part = Part()
    codec = SleepingCodec(Codec(part), Sleepers([part], DEVICE))
    codec.images_of(torch.zeros(1, requires_grad=True))
    assert part.place == "cuda"
    codec.decode(torch.zeros(1))
    assert part.place == "cuda"


def test_a_sparing_pipelines_autoencoder_is_awake_for_its_own_calls_and_the_codecs(monkeypatch):
    pipe, moved = tiny.stable_diffusion(), []
    stock = pipe.vae.to
    monkeypatch.setattr(pipe.vae, "to", lambda place: moved.append(str(place)) or stock(place))
    size = {"height": 8, "width": 8}
    plain, sparing = Pipeline(pipe, size=size), Pipeline(pipe, size=size, sparing=True)
    assert len(moved) >= 2
    images = [pipeline.codec.decode(torch.ones(1, *pipeline.shape)) for pipeline in (plain, sparing)]
    assert torch.equal(*images)
    moved.clear()
    plain.codec.decode(torch.ones(1, *plain.shape))
    assert moved == []
    sparing.codec.decode(torch.ones(1, *plain.shape))
    sparing.condition(1, prompts=["another"])
    assert len(moved) == 4
