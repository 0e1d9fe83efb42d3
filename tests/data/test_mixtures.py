"""Several sources with weights, and buckets: what stands where, and that it is the same for everybody."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from encoded import encoded, noise_image, save

from fastgen.config.yaml_file import dump, fingerprint, load
from fastgen.data import ImageFolder, Loader, Mixture, Noise, PromptFile
from fastgen.data.buckets import Buckets, nearest
from fastgen.data.known import parts_of
from fastgen.data.mixture import sources_in
from fastgen.data.order import between, order_of
from fastgen.data.workers import decodes
from fastgen.errors import UserError

SDXL = Buckets(step=64, ratio=2.0).shapes((1024, 1024))


def prompts(path, name, count):
    return PromptFile(save(path / f"{name}.txt", "".join(f"{name} {i}\n" for i in range(count))))


def told(loader, start, stop):
    return [text for position in range(start, stop) for text in loader.take(position, 1).prompts]


def test_weights_are_shares_of_the_positions(tmp_path):
    source = Mixture((prompts(tmp_path, "a", 10), prompts(tmp_path, "b", 500)), (3.0, 1.0))
    source.check()
    seen = Counter(text.split()[0] for text in Loader(source, seed=0).take(0, 4000).prompts)
    assert seen == {"a": 3000, "b": 1000}


def test_each_source_goes_through_all_of_its_own_before_any_comes_again(tmp_path):
    source = Mixture((prompts(tmp_path, "a", 700), prompts(tmp_path, "b", 300)), (1.0, 1.0))
    texts = Loader(source, seed=0).take(0, 4200).prompts
    for name, count in (("a", 700), ("b", 300)):
        own = [text for text in texts if text.startswith(name)]
        for start in range(0, len(own) - count, count):
            assert len(set(own[start : start + count])) == count


def test_a_mixture_goes_on_where_it_stopped(tmp_path):
    source = Mixture((prompts(tmp_path, "a", 30), prompts(tmp_path, "b", 50)), (1.0, 2.0))
    whole = Loader(source, seed=5).take(0, 2500).prompts
    assert told(Loader(source, seed=5), 990, 1030) == list(whole[990:1030])
    assert list(Loader(source, seed=5).take(2400, 100).prompts) == list(whole[2400:])


def test_a_list_in_a_config_is_a_mixture(tmp_path):
    parts = [{"source": "prompts", "path": str(prompts(tmp_path, name, 3).path)} for name in "ab"]
    base = {"out": "run", "teacher": {"path": "t"}, "objective": {"name": "dmd2", "gan": 0}, "train": {"images": 8}}
    config = load({**base, "data": [{**parts[0], "weight": 2}, parts[1]]})
    assert config.data.weights == (2.0, 1.0)
    assert list(config.data.prompts) == ["a 0", "a 1", "a 2", "b 0", "b 1", "b 2"]
    assert fingerprint(config)["data"] == [{**parts[0], "weight": 2.0}, {**parts[1], "weight": 1.0}]
    save(tmp_path / "again.yaml", dump(config))
    assert load(tmp_path / "again.yaml") == config
    for wrong, message in (([], "at least one"), ([{**parts[0], "weight": 0}], "above 0"), (["x"], "mappings")):
        with pytest.raises(UserError, match=message):
            load({**base, "data": wrong})


def test_sources_that_differ_are_refused(tmp_path):
    save(tmp_path / "images/a.png", encoded(noise_image(0)))
    with pytest.raises(UserError, match="differ in their images"):
        Mixture((prompts(tmp_path, "a", 3), ImageFolder(tmp_path / "images", 8)), (1.0, 1.0)).check()
    with pytest.raises(UserError, match="shapes"):
        Mixture((ImageFolder(tmp_path / "images", 8), ImageFolder(tmp_path / "images", 9)), (1.0, 1.0)).check()


def test_a_setting_named_parts_makes_no_mixture():
    @dataclass(frozen=True)
    class Halves(Noise):
        parts: int = 2

    assert sources_in(mixture := Mixture((Noise(), Halves()), (1.0, 1.0))) == mixture.parts
    assert sources_in(Halves()) == (Halves(),)
    assert parts_of(Halves()) == []
    assert not decodes(Halves())


def test_images_of_several_sources_come_in_the_order_that_was_asked_for(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        save(tmp_path / name, encoded(noise_image(hash(name) % 7)))
    parts = tuple(ImageFolder(tmp_path / name, 8) for name in "ab")
    items = Mixture(parts, (1.0, 1.0)).items([2, 0, 1, 2])
    alone = [parts[1].items([0]), parts[0].items([0]), parts[0].items([1]), parts[1].items([0])]
    assert torch.equal(items.images, torch.cat([one.images for one in alone]))
    assert items.numbers == (2, 0, 1, 2)


def test_shapes_have_about_the_pixels_of_the_size():
    assert (1024, 1024) in SDXL
    assert {(1152, 896), (896, 1152), (1344, 768), (768, 1344)} <= set(SDXL)
    assert all(side % 64 == 0 for shape in SDXL for side in shape)
    assert all(abs(height * width / 1024**2 - 1) < 0.07 for height, width in SDXL)
    assert all(max(shape) <= 2 * min(shape) for shape in SDXL)


def test_images_go_to_the_shape_nearest_to_their_own():
    sizes = np.array([[1000, 1000], [3000, 4000], [1920, 1080], [100, 5000], [5000, 100]])
    chosen = [SDXL[number] for number in nearest(sizes, SDXL)]
    ratios = [max(SDXL, key=lambda s, h=h, w=w: -abs(np.log(s[1] / s[0] * h / w))) for h, w in sizes]
    assert [c[1] / c[0] for c in chosen] == [r[1] / r[0] for r in ratios]


@pytest.fixture
def shapes(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGEN_CACHE", str(tmp_path / "kept"))
    for number in range(23):
        width, height = ((16, 16), (24, 12), (12, 24))[number % 3]
        save(tmp_path / f"set/{number:02d}.png", encoded(noise_image(number, width, height)))
        save(tmp_path / f"set/{number:02d}.txt", str(number))
    source = ImageFolder(tmp_path / "set", 16, buckets=Buckets(step=4, ratio=2.0))
    source.check()
    return source


def test_a_batch_has_one_shape_and_an_epoch_every_item_that_fits(shapes):
    loader = Loader(shapes, seed=0, batch=4)
    seen = Counter()
    for start in range(0, 24 * 30, 4):
        items = loader.take(start, 4)
        assert items.images.shape[-2:] == items.size
        assert len({shapes.bucket[int(text)] for text in items.prompts}) == 1
        seen.update(items.prompts)
    assert len(seen) == 23
    assert 30 <= min(seen.values()) <= max(seen.values()) < 40


def test_parts_of_a_batch_have_its_shape_on_any_number_of_processes(shapes):
    whole = Loader(shapes, seed=0, batch=4)
    for start in range(0, 40, 4):
        batch = whole.take(start, 4)
        parts = [Loader(shapes, seed=0, batch=4).take(start + 2 * rank, 2) for rank in range(2)]
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert all(part.size == batch.size for part in parts)


def test_shapes_are_known_where_images_are_not_decoded(shapes):
    told = Loader(shapes, seed=0, batch=4, images=False).take(8, 4)
    assert told.images is None
    assert told.size == Loader(shapes, seed=0, batch=4).take(8, 4).size


def test_an_image_that_cannot_be_read_gives_way_to_one_of_its_shape(shapes):
    number = 4
    assert shapes.bucket[4] == shapes.bucket[7]
    shapes.files[number].write_bytes(shapes.files[number].read_bytes()[:60])
    items = shapes.items([number, 7])
    assert items.numbers == (7, 7)


def test_sizes_are_read_once(shapes, monkeypatch):
    _ = shapes.bucket

    def fail(*_):
        raise AssertionError("read again")

    monkeypatch.setattr("fastgen.data.sizes.size_of", fail)
    again = ImageFolder(shapes.path, 16, buckets=shapes.buckets)
    assert np.array_equal(again.bucket, shapes.bucket)


def test_weights_and_buckets_go_together(shapes):
    source = Mixture((shapes, ImageFolder(shapes.path, 16, buckets=shapes.buckets)), (3.0, 1.0))
    source.check()
    order = order_of(source, 0, batch=4)
    numbers = between(order, 0, 3 * order.length)
    assert all(len(set(source.bucket[batch])) == 1 for batch in numbers.reshape(-1, 4))
    assert 0.7 < np.mean(numbers < 23) < 0.8


@pytest.mark.parametrize("buckets", [Buckets(step=0), Buckets(step=32), Buckets(ratio=0.5), Buckets(ratio=20)])
def test_impossible_buckets_are_refused(buckets, shapes):
    with pytest.raises(UserError, match=r"buckets\."):
        ImageFolder(shapes.path, 16, buckets=buckets).check()
