"""The loader: a stream that depends on seed and position alone, decoded ahead of need."""

import threading
from collections import Counter

import pytest
import torch

from fastgen.data import Items, Loader, Noise, Source
from fastgen.data.prompts import PromptFile
from fastgen.errors import UserError


class Numbers(Source):
    """Item i is an image with the value i in its left column; remembers what it was asked for."""

    has_images = True
    num_classes = None
    prompts = None

    def __init__(self, length: int, *, bad: frozenset[int] = frozenset()):
        self.length = length
        self.bad = bad
        self.calls = []
        self.asked = threading.Condition()

    def check(self): ...

    def __len__(self):
        return self.length

    def items(self, indices):
        with self.asked:
            self.calls.append(list(indices))
            self.asked.notify_all()
        if broken := self.bad.intersection(indices):
            raise UserError(f"item {min(broken)} is broken")
        images = torch.zeros(len(indices), 1, 2, 3)
        images[..., 0] = torch.tensor(indices, dtype=torch.float32)[:, None, None]
        return Items(images=images, labels=torch.tensor(indices))

    def wait_for_calls(self, count):
        with self.asked:
            assert self.asked.wait_for(lambda: len(self.calls) >= count, timeout=10)


def stream(loader: Loader, start: int, stop: int) -> list[int]:
    """Item numbers at positions start .. stop - 1, taken one by one."""
    return [int(loader.take(position, 1).labels) for position in range(start, stop)]


def test_each_epoch_has_every_item_once_in_another_order():
    epochs = [Loader(Numbers(50), seed=1).take(50 * epoch, 50).labels.tolist() for epoch in range(4)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_depends_on_the_seed_alone():
    def order(seed: int) -> list[int]:
        return Loader(Numbers(50), seed=seed).take(0, 50).labels.tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(0) != list(range(50))


def test_the_order_is_the_same_in_every_version():
    """Resuming after an upgrade must not change the stream: these figures never change."""
    assert Loader(Numbers(10), seed=3).take(0, 20).labels.tolist() == [
        *(4, 0, 2, 9, 8, 7, 6, 1, 5, 3),
        *(5, 1, 2, 9, 0, 4, 7, 8, 6, 3),
    ]


def test_all_first_places_are_equally_likely():
    firsts = Counter(int(Loader(Numbers(5), seed=seed).take(0, 1).labels) for seed in range(300))
    assert set(firsts) == set(range(5))
    assert all(32 <= count <= 88 for count in firsts.values())  # 60 +- 4 standard deviations


def test_without_shuffling_the_source_keeps_its_order():
    assert Loader(Numbers(4), seed=0, shuffle=False).take(2, 7).labels.tolist() == [2, 3, 0, 1, 2, 3, 0]


@pytest.mark.parametrize(("position", "count"), [(0, 1), (5, 4), (6, 7), (6, 30), (123_456, 9)])
def test_a_range_is_its_positions_one_by_one_even_across_epochs(position, count):
    whole = Loader(Numbers(7), seed=0, flip=True).take(position, count)
    loader = Loader(Numbers(7), seed=0, flip=True)
    parts = [loader.take(position + offset, 1) for offset in range(count)]
    assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
    assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))


def test_a_resumed_stream_goes_on_where_it_stopped():
    uninterrupted = stream(Loader(Numbers(7), seed=0), 0, 30)
    stopped = Loader(Numbers(7), seed=0)
    resumed = Loader(Numbers(7), seed=0)
    assert stream(stopped, 0, 11) + stream(resumed, 11, 30) == uninterrupted


def test_processes_that_interleave_see_what_one_process_sees():
    alone = Loader(Numbers(10), seed=0, flip=True).take(0, 48)
    ranks = [Loader(Numbers(10), seed=0, flip=True) for _ in range(3)]
    batches = [ranks[number % 3].take(4 * number, 4) for number in range(12)]
    assert torch.equal(torch.cat([batch.images for batch in batches]), alone.images)


@pytest.mark.parametrize(("ranks", "rank"), [(1, 0), (4, 1)])
def test_the_next_range_is_decoded_ahead(ranks, rank):
    source = Numbers(1000)
    loader = Loader(source, seed=0, shuffle=False)
    starts = [8 * (ranks * step + rank) for step in range(4)]
    loader.take(starts[0], 8)
    source.wait_for_calls(2)  # the first guess is wrong for a process among several
    loader.take(starts[1], 8)
    for start in starts[2:]:
        calls = 1 + starts.index(start) + (ranks > 1)
        source.wait_for_calls(calls)
        assert source.calls[calls - 1 :] == [list(range(start, start + 8))]
        assert loader.take(start, 8).labels.tolist() == list(range(start, start + 8))


def test_wrong_guesses_do_no_harm():
    loader = Loader(Numbers(10), seed=0, flip=True)
    for position, count in [(0, 4), (4, 4), (8, 4), (8, 4), (8, 3), (30, 4), (2, 9), (3, 1), (3, 1), (12, 4)]:
        expected = Loader(Numbers(10), seed=0, flip=True).take(position, count)
        assert torch.equal(loader.take(position, count).images, expected.images)


def test_an_error_ahead_surfaces_when_its_range_is_taken():
    source = Numbers(20, bad=frozenset({9}))
    loader = Loader(source, seed=0, shuffle=False)
    loader.take(0, 4)
    loader.take(4, 4)
    source.wait_for_calls(3)
    with pytest.raises(UserError, match="item 9 is broken"):
        loader.take(8, 4)
    with pytest.raises(UserError, match="item 9 is broken"):
        loader.take(9, 1)
    assert loader.take(12, 4).labels.tolist() == [12, 13, 14, 15]


def test_an_error_of_a_range_that_nobody_takes_is_not_raised():
    source = Numbers(20, bad=frozenset({4}))
    loader = Loader(source, seed=0, shuffle=False)
    loader.take(0, 4)
    source.wait_for_calls(2)
    assert loader.take(8, 4).labels.tolist() == [8, 9, 10, 11]


def test_half_of_the_images_are_mirrored_and_not_always_the_same():
    loader = Loader(Numbers(500), seed=0, flip=True, shuffle=False)
    images = loader.take(0, 4000).images[:, 0, 0]
    index = torch.arange(4000) % 500
    kept, mirrored = images[:, 0] == index, images[:, 2] == index
    assert ((kept ^ mirrored) | (index == 0)).all()
    assert 0.46 < mirrored.float().mean() < 0.54  # 5 standard deviations
    by_epoch = mirrored.reshape(8, 500)
    agreement = (by_epoch[0] == by_epoch[1]).float().mean()
    assert 0.38 < agreement < 0.62
    other_seed = Loader(Numbers(500), seed=1, flip=True, shuffle=False).take(0, 500).images[:, 0, 0, 2]
    assert (by_epoch[0] != (other_seed == index[:500])).any()


def test_without_flip_nothing_is_mirrored():
    images = Loader(Numbers(100), seed=0).take(0, 300).images
    assert (images[..., 1:] == 0).all()


def test_flip_leaves_sources_without_images_alone():
    assert Loader(Noise(3), seed=0, flip=True).take(0, 3).labels.sort().values.tolist() == [0, 1, 2]


def test_nothing_stands_at_a_negative_position():
    loader = Loader(Numbers(3), seed=0)
    for position, count in [(-1, 2), (0, 0)]:
        with pytest.raises(ValueError, match="cannot take"):
            loader.take(position, count)


def cycles(count: int, *, rank: int, ranks: int, parts: int, skipped: int = 0) -> list[int]:
    """Starts of the ranges of 2 that a rank takes: `parts` in a row of each batch, but for every `skipped`-th batch."""
    size = 2 * parts
    batches = [number for number in range(count) if not skipped or number % skipped]
    return [size * (ranks * number + rank) + 2 * part for number in batches for part in range(parts)]


@pytest.mark.parametrize(
    ("ranks", "rank", "parts", "skipped"), [(1, 0, 1, 3), (2, 1, 2, 0), (4, 2, 3, 0), (2, 0, 2, 3)]
)
def test_accumulation_on_several_processes_is_read_ahead(ranks, rank, parts, skipped):
    source = Numbers(10_000)
    loader = Loader(source, seed=0, shuffle=False)
    starts = cycles(16, rank=rank, ranks=ranks, parts=parts, skipped=skipped)
    for start in starts:
        assert loader.take(start, 2).labels.tolist() == [start, start + 1]
        loader._thread.submit(int).result()  # what is read ahead has been read
    wrong = len(source.calls) - len(starts) - 1  # guesses that nobody took
    assert wrong <= 2 * parts + skipped


def test_images_that_nobody_reads_are_not_decoded(tmp_path):
    class Told(Numbers):
        def without_images(self, indices):
            return Items(labels=torch.tensor(indices))

    source = Told(10)
    items = Loader(source, seed=0, shuffle=False, flip=True, images=False).take(3, 4)
    assert items.labels.tolist() == [3, 4, 5, 6]
    assert items.images is None
    assert source.calls == []
    assert Loader(Numbers(10), seed=0, images=False).take(0, 2).images is None


def test_what_is_drawn_is_what_stands_at_the_positions():
    source = Numbers(10)
    source.prompts = tuple(map(str, range(10)))
    loader = Loader(source, seed=4)
    for count in (1, 7, 10, 23):
        assert loader.drawn(count).nonzero()[0].tolist() == sorted(set(loader.take(0, count).labels.tolist()))


@pytest.mark.parametrize("flip", [False, True])
def test_the_images_of_so_many_positions_are_found_once_and_those_of_a_huge_budget_soon(flip):
    loader = Loader(Numbers(7), seed=3, flip=flip)
    for count in (0, 5, 16, 40):
        walked = set(zip(loader.numbers(range(count)), loader.mirrored(range(count)), strict=True))
        assert loader.pictured(count) == sorted(walked)
    every = [(number, mirrored) for number in range(7) for mirrored in (False, True)[: 1 + flip]]
    assert loader.pictured(10**15) == every


def test_the_captions_of_a_huge_budget_are_found_soon_also_where_some_are_left_out(tmp_path):
    words = tmp_path / "prompts.txt"
    words.write_text("one\ntwo\nthree\n")
    assert Loader(PromptFile(words), seed=0, dropout=0.5, images=False).drawn(10**15).all()
