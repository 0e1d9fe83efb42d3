"""The conditioning of prompts: encoded once, kept on disk under what it depends on, mended when damaged."""

import random
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDIMScheduler, LDMPipeline
from families import FAMILIES
from quick import some
from rounding import gap
from safetensors import safe_open
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fastgen.errors import UserError
from fastgen.models.conditioning import Conditioning
from fastgen.models.layout import flat
from fastgen.models.layout import same as alike
from fastgen.models.pipelines import encoding, store
from fastgen.models.pipelines.components import autoencoder_of, encoders_of
from fastgen.models.pipelines.pipeline import Pipeline

FLIPS = 60
PROMPTS = ["fox", "a red bird in the snow", "fox"]
KINDS = ["stable_diffusion", "sdxl", "qwen_image", "z_image", "hidream"]  # tensors, nested, tuples, lists, another axis


def seen(name: str, cache: Path | None, **settings: Any) -> tuple[Pipeline, list[Any]]:
    """A family with its cache, and what its text encoders are asked from now on."""
    family = FAMILIES[name]
    pipe = family.build()
    pipeline = Pipeline(pipe, size=settings.pop("size", family.size), cache=cache, test=False, **settings)
    asked: list[Any] = []
    encoder = next(part for key, part in pipe.components.items() if key.startswith("text_encoder"))
    encoder.register_forward_pre_hook(lambda _net, args, kwargs: asked.append((args, kwargs)), with_kwargs=True)
    return pipeline, asked


def same(a: Conditioning, b: Conditioning, within: float = 0.0) -> None:
    ours, theirs = flat(a.kwargs), flat(b.kwargs)
    assert ours.keys() == theirs.keys()
    for path, one in ours.items():
        for x, y in zip(tree_leaves(one), tree_leaves(theirs[path]), strict=True):
            assert gap(x, y) <= within if isinstance(x, Tensor) and x.is_floating_point() else equal(x, y), path


def equal(x: Any, y: Any) -> bool:
    return torch.equal(x, y) if isinstance(x, Tensor) else x == y


@pytest.mark.parametrize("name", some(KINDS, "sdxl", "qwen_image", "z_image"))  # of which SDXL has tensors too
def test_a_second_run_reads_what_the_first_one_encoded(name: str, tmp_path):
    first, asked = seen(name, tmp_path)
    told = first.condition(3, prompts=PROMPTS)
    assert asked
    again, asked = seen(name, tmp_path)
    read = again.condition(3, prompts=PROMPTS)
    assert not asked
    same(read, told)
    same(read, seen(name, None)[0].condition(3, prompts=PROMPTS), within=1e-4)
    if told.null is not None:
        same(read.unconditional, told.unconditional, within=1e-4)  # encoded by either network


def test_prompts_are_encoded_ahead_and_then_never_again(tmp_path):
    pipeline, asked = seen("stable_diffusion", tmp_path)
    pipeline.encode(PROMPTS, progress=False)
    count = len(asked)
    pipeline.condition(3, prompts=PROMPTS)
    assert len(asked) == count == 1


def test_another_size_encoder_or_network_has_rows_of_its_own(tmp_path):
    first, _ = seen("sdxl", tmp_path)
    first.encode(PROMPTS, progress=False)
    wide, asked = seen("sdxl", tmp_path, size={"height": 16, "width": 32})
    told = wide.condition(1, prompts=["fox"])
    assert asked
    assert told.kwargs["added_cond_kwargs"]["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]]

    family = FAMILIES["sdxl"]
    pipe = family.build()
    with torch.no_grad():
        pipe.text_encoder.get_input_embeddings().weight.add_(0.1)
    finetuned = Pipeline(pipe, size=family.size, cache=tmp_path).condition(1, prompts=["fox"])
    plain = first.condition(1, prompts=["fox"])
    assert not torch.equal(finetuned.kwargs["encoder_hidden_states"], plain.kwargs["encoder_hidden_states"])


def test_a_damaged_row_is_encoded_again(tmp_path):
    told = seen("stable_diffusion", tmp_path)[0].condition(3, prompts=PROMPTS)
    for damage in (lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"x" * len(raw)):
        for file in tmp_path.rglob("*.safetensors"):
            file.write_bytes(damage(file.read_bytes()))
        again, asked = seen("stable_diffusion", tmp_path)
        same(again.condition(3, prompts=PROMPTS), told, within=1e-4)
        assert asked


def test_rows_are_the_same_only_if_every_tensor_shape_and_word_is():
    a = Conditioning(1, {"x": torch.ones(1, 2), "more": {"said": ["a"]}})
    assert alike(a, Conditioning(1, {"x": torch.ones(1, 2) + 1e-7, "more": {"said": ["a"]}}))
    assert not alike(a, Conditioning(1, {"x": torch.ones(1, 2), "more": {"said": ["b"]}}))
    assert not alike(a, Conditioning(1, {"x": torch.ones(1, 3), "more": {"said": ["a"]}}))
    assert not alike(a, Conditioning(1, {"x": torch.ones(1, 2)}))


def test_an_autoencoder_of_any_name_is_no_encoder_of_prompts():
    pipe = LDMPipeline(tiny.autoencoder(), tiny.unet(), DDIMScheduler())
    assert autoencoder_of(pipe) is pipe.vqvae
    assert encoders_of(pipe) == []


def test_prompts_of_different_length_come_back_padded_and_masked(tmp_path):
    pipeline, _ = seen("qwen_image", tmp_path)
    told = pipeline.condition(2, prompts=["fox", "a red bird in the snow"]).kwargs
    short, long = told["encoder_hidden_states_mask"].sum(1).tolist()
    assert short < long == told["encoder_hidden_states"].shape[1]
    assert not told["encoder_hidden_states"][0, short:].any()
    assert told["encoder_hidden_states"][0, short - 1].any()


def test_prompts_lie_in_few_files_and_are_read_from_open_ones(tmp_path, monkeypatch):
    pipeline, _ = seen("stable_diffusion", tmp_path)
    many = [f"thing {i}" for i in range(70)]
    pipeline.encode(many, progress=False)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    opened: list[Path] = []
    monkeypatch.setattr(store, "safe_open", lambda file, **kw: opened.append(file) or safe_open(file, **kw))
    for _ in range(2):
        pipeline.condition(3, prompts=many[:3])
    assert len(opened) == 1


def test_a_run_that_dies_has_lost_no_file_that_was_full(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "SHARD_ROWS", 2)
    pipeline, _ = seen("qwen_image", tmp_path)
    written = store.save_file

    def third(*args: Any, **kwargs: Any) -> None:
        if len(list(tmp_path.rglob("*.safetensors"))) == 2:
            raise KeyboardInterrupt
        written(*args, **kwargs)

    monkeypatch.setattr(store, "save_file", third)
    many = [f"thing {'a' * i}" for i in range(7)]
    with pytest.raises(KeyboardInterrupt):
        pipeline.encode(many, progress=False)
    monkeypatch.setattr(store, "save_file", written)
    again, asked = seen("qwen_image", tmp_path)
    assert again.encoder._store.missing(many).tolist() == [4, 5, 6]
    told = again.condition(7, prompts=many)
    assert len(asked) == 1
    same(told, seen("qwen_image", None)[0].condition(7, prompts=many), within=1e-4)


def test_processes_share_the_work_and_find_what_the_others_wrote(tmp_path):
    many = [f"thing {i % 5}" for i in range(9)]
    both = [seen("stable_diffusion", tmp_path) for _ in range(2)]
    for place, (pipeline, _) in enumerate(both):
        pipeline.encoder.fill(many, share=(place, 2))
        if not place:
            assert len(pipeline.encoder._store.missing(many)) == 1
            both[1][0].encoder.refresh()  # as one that starts late
    for pipeline, asked in both:
        pipeline.encoder.refresh()
        before = len(asked)
        pipeline.condition(9, prompts=many)
        assert len(asked) == before


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    pipeline, _ = seen("stable_diffusion", tmp_path)
    row = pipeline.encoder._store
    monkeypatch.setattr(store.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**5))
    with pytest.raises(UserError, match=r"encoded prompts of this run take [\d,]+ bytes in .*cache="):
        pipeline.encode([f"thing {i}" for i in range(100)], progress=False)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert len(row.missing(["thing 0"])) == 1


def test_hashes_whose_first_halves_coincide_are_told_apart(tmp_path, monkeypatch):
    rows = {i: Conditioning(1, {"x": torch.full((1, 2), float(i))}) for i in range(6)}
    kept = store.Store(tmp_path)
    monkeypatch.setattr(
        store, "hashes_of", lambda values: np.array([[v % 2, v] for v in values], np.int64).reshape(-1, 2)
    )
    kept.keep((i, rows[i]) for i in (0, 1, 2, 3, 4))
    assert kept.missing([5, 3, 5, 1, 0, 7]).tolist() == [0, 5]
    for i in (0, 1, 2, 3, 4):
        same(kept.row(i), rows[i])


def test_every_row_of_a_flipped_file_is_as_written_or_forgotten(tmp_path):
    chance, rows = random.Random(0), {}
    for i in range(4):
        batched = {"x": torch.randn(1, 2 + i, 3), "y": [torch.randn(2, 2, dtype=torch.bfloat16)], "n": [i]}
        rows[i] = Conditioning(1, batched)
    store.Store(tmp_path).keep(rows.items())
    (file,) = tmp_path.iterdir()
    content, forgotten = file.read_bytes(), 0
    for _ in range(FLIPS):
        spoilt = bytearray(content)
        spoilt[chance.randrange(len(spoilt))] ^= 1 << chance.randrange(8)
        file.write_bytes(spoilt)
        kept = store.Store(tmp_path)
        missing = set(kept.missing(list(rows)).tolist())
        for i in rows.keys() - missing:
            found = kept.row(i)
            if found is None:
                forgotten += 1
                assert i in kept.missing(list(rows)).tolist()
            else:
                same(found, rows[i])
    assert forgotten > FLIPS / 2


def test_a_damaged_row_is_encoded_again_and_found_by_the_next_run(tmp_path, caplog):
    first, _ = seen("stable_diffusion", tmp_path)
    first.encode(PROMPTS, progress=False)
    true = first.condition(len(PROMPTS), prompts=PROMPTS)
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    second, asked = seen("stable_diffusion", tmp_path)
    before = len(asked)
    same(second.condition(len(PROMPTS), prompts=PROMPTS), true)
    assert len(asked) == before + 1
    assert "is damaged in the cache: it is encoded again" in caplog.text
    third, asked = seen("stable_diffusion", tmp_path)
    before = len(asked)
    same(third.condition(len(PROMPTS), prompts=PROMPTS), true)
    assert len(asked) == before


def test_every_process_finds_what_another_one_encoded(tmp_path):
    """Diffusers notes its defaults in the order of a set, which each process chooses anew."""
    first, _ = seen("sdxl", tmp_path)
    first.encode(PROMPTS, progress=False)
    family = FAMILIES["sdxl"]
    pipe = family.build()
    names = list(pipe.unet.config["_use_default_values"])
    pipe.unet.register_to_config(_use_default_values=names[::-1])
    assert list(pipe.unet.config["_use_default_values"]) != names
    again = Pipeline(pipe, size=family.size, cache=tmp_path)
    assert len(again.encoder._store.missing(PROMPTS)) == 0
    several = [
        replace(first.form, layout=replace(first.form.layout, several=frozenset(order))) for order in ("ab", "ba")
    ]
    assert len({encoding.identity(pipe, form, first._asking) for form in several}) == 1
