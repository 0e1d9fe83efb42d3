"""Training on some items of the data: exactly these, each as often as any other, wherever they lie."""

from collections import Counter

import numpy as np
import pytest
import torch
from encoded import encoded, noise_image, save
from safetensors.torch import save_file

from fastgen.data import ImageFolder, Loader, Mixture, Noise, Owned, PromptFile, Selection
from fastgen.data.order import Among, Shuffled, Windowed, order_of
from fastgen.errors import UserError


def labels_seen(source, only, count) -> Counter:
    return Counter(Loader(source, seed=0, only=only.numbers(source)).take(0, count).labels.tolist())


def test_classes_are_those_alone_and_all_of_them():
    seen = labels_seen(Noise(10), Selection(classes=(2, 5, 7)), 300)
    assert seen == {2: 100, 5: 100, 7: 100}


def test_images_are_those_of_the_classes(tmp_path):
    for name in "abc":
        for number in range(4):
            save(tmp_path / name / f"{number}.png", encoded(noise_image(number)))
    source = ImageFolder(tmp_path, 8)
    numbers = Selection(classes=(0, 2)).numbers(source)
    assert numbers.tolist() == [0, 1, 2, 3, 8, 9, 10, 11]
    loader = Loader(source, seed=3, only=numbers)
    items = loader.take(0, 16)
    assert Counter(loader.numbers(range(16))) == dict.fromkeys(numbers.tolist(), 2)
    expected = source.items(loader.numbers(range(16)))
    assert torch.equal(items.images, expected.images)
    assert torch.equal(items.labels, expected.labels)


def test_owned_items_are_read_from_the_assignment(tmp_path):
    source = PromptFile(save(tmp_path / "p.txt", "".join(f"prompt {i}\n" for i in range(6))))
    save_file({"owners": torch.tensor([0, 1, 1, 0, 2, 1])}, tmp_path / "owners.safetensors")
    parts = [Selection(owned=Owned(tmp_path / "owners.safetensors", owner)).numbers(source) for owner in range(3)]
    assert [part.tolist() for part in parts] == [[0, 3], [1, 2, 5], [4]]
    assert sorted(np.concatenate(parts)) == list(range(6))
    drawn = Loader(source, seed=0, only=parts[1]).drawn(100)
    assert np.flatnonzero(drawn).tolist() == [1, 2, 5]


@pytest.mark.parametrize("whole", [Shuffled(50, 4), Windowed(50, 7, 4)])
def test_the_order_is_that_of_the_whole_without_the_others(whole):
    chosen = np.arange(50) % 3 == 1
    order = Among(whole, chosen)
    for number in range(3):
        items = whole.epoch(number)
        assert order.epoch(number).tolist() == [item for item in items.tolist() if item % 3 == 1]
        assert len(order.epoch(number)) == order.length == chosen.sum()


def test_sources_keep_their_shares_among_what_is_chosen(tmp_path):
    parts = [PromptFile(save(tmp_path / f"{n}.txt", "".join(f"{n} {i}\n" for i in range(20)))) for n in "abc"]
    source = Mixture(tuple(parts), (3.0, 1.0, 1.0))
    only = np.array([*range(5), *range(20, 30)])  # nothing of the third
    seen = Counter(Loader(source, seed=0, only=only).take(0, 800).prompts)
    assert set(seen) == {*(f"a {i}" for i in range(5)), *(f"b {i}" for i in range(10))}
    counts = Counter(text[0] for text in seen.elements())
    assert counts == {"a": 600, "b": 200}


def test_a_resumed_order_goes_on_where_it_stopped():
    source, only = Noise(10), Selection(classes=(1, 4, 8))
    whole = Loader(source, seed=5, only=only.numbers(source)).take(0, 50).labels
    later = Loader(source, seed=5, only=only.numbers(source)).take(31, 19).labels
    assert torch.equal(whole[31:], later)
    assert isinstance(order_of(source, 5, only=only.numbers(source)), Among)


def test_what_cannot_be_chosen_is_refused(tmp_path):
    for wrong, said in (({}, "give `classes`"), ({"classes": ()}, "at least one"), ({"classes": (1, 1)}, "each once")):
        with pytest.raises(ValueError, match=said):
            Selection(**wrong)
    with pytest.raises(UserError, match="the classes 0 to 9"):
        Selection(classes=(3, 10)).numbers(Noise(10))
    with pytest.raises(UserError, match="no classes"):
        Selection(classes=(3,)).numbers(Noise())
    file = tmp_path / "owners.safetensors"
    with pytest.raises(UserError, match="does not say whose"):
        Selection(owned=Owned(file, 0)).numbers(Noise(3))
    save_file({"owners": torch.tensor([0, 1])}, file)
    with pytest.raises(UserError, match="says whose 2 items are, but the data has 3"):
        Selection(owned=Owned(file, 0)).numbers(Noise(3))
    with pytest.raises(UserError, match="no item of the data"):
        Selection(owned=Owned(file, 7)).numbers(Noise(2))
