import io
import json
import struct
import tarfile
import threading
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from encoded import encoded, noise_image, pixels_of, save
from PIL import Image

from eval.images import decode as images
from eval.images.decode import ImageBatch, Reading, decode, image_batches
from eval.images.encoded import EncodedImage
from eval.images.sets import open_images
from fastgen.errors import UserError
from fastgen.sampling import pictures


def opened(content: bytes) -> torch.Tensor:
    return decode(EncodedImage("it", content, None))


def read(path: Path, batch_size: int = 4, *, share: range | None = None, **options: object) -> list[ImageBatch]:
    return list(image_batches(open_images(path), Reading(batch_size, **options), share))


def parquet_file(path: Path, **columns: list) -> Path:
    parquet.write_table(pa.table(columns), path)
    return path


def test_a_folder_is_read_in_the_order_of_the_numbers_in_its_paths(tmp_path: Path) -> None:
    names = ["a/2.png", "a/10.png", "a.png", "b/1.webp", "c9/x.png", "c10/x.png", "c.BMP"]
    for seed, name in enumerate(names):
        kind = {"webp": "WEBP", "png": "PNG", "BMP": "BMP"}[name.rpartition(".")[2]]
        options = {"lossless": True} if kind == "WEBP" else {}
        save(tmp_path / name, encoded(noise_image(seed), kind, **options))
    for name in ("notes.txt", ".hidden.png", ".cache/x.png", "grid.png"):
        save(tmp_path / name, b"not an image")
    images = torch.cat([batch.images for batch in read(tmp_path, 2)])
    expected = torch.stack([pixels_of(noise_image(seed)) for seed in range(len(names))])
    assert torch.equal(images, expected)


def test_batches_are_full_until_the_last_and_a_share_is_a_part_of_them(tmp_path: Path) -> None:
    for seed in range(7):
        save(tmp_path / f"{seed}.png", encoded(noise_image(seed)))
    assert [len(batch.images) for batch in read(tmp_path, 3)] == [3, 3, 1]
    assert [len(batch.images) for batch in read(tmp_path, 3, share=range(5))] == [3, 2]
    part = torch.cat([batch.images for batch in read(tmp_path, 3, share=range(2, 6))])
    assert torch.equal(part, torch.stack([pixels_of(noise_image(seed)) for seed in range(2, 6)]))
    assert len(open_images(tmp_path)) == 7


def test_oblong_images_keep_their_shape() -> None:
    image = noise_image(0, width=5, height=3)
    assert torch.equal(opened(encoded(image)), pixels_of(image))


def test_grey_is_repeated_over_the_channels() -> None:
    grey = noise_image(0).convert("L")
    assert torch.equal(opened(encoded(grey)), pixels_of(grey).expand(3, -1, -1))


def test_transparency_is_composed_over_white() -> None:
    colour = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    colour.putpixel((1, 0), (10, 20, 30, 0))
    assert opened(encoded(colour))[:, 0].tolist() == [[10, 255], [20, 255], [30, 255]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert opened(encoded(palette, transparency=1))[:, 0].tolist() == [[10, 255], [20, 255], [30, 255]]


def test_16_bit_grey_keeps_its_upper_8_bits() -> None:
    levels = np.array([[0, 255, 256, 65535]], dtype=np.uint16)
    assert opened(encoded(Image.fromarray(levels)))[:, 0].tolist() == [[0, 0, 1, 255]] * 3


def test_exif_orientation_is_applied() -> None:
    image = noise_image(0, width=6, height=4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by 90 degrees
    turned = opened(encoded(image, exif=exif))
    assert torch.equal(turned, pixels_of(image).rot90(-1, (1, 2)))


def bomb() -> bytes:
    """A PNG of 40,000 x 40,000 pixels in a few bytes; its pixels are not even there."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def medium_bomb() -> bytes:
    """9,000 x 9,000 real pixels: above the limit, below Pillow's own warning and error."""
    return encoded(Image.new("1", (9_000, 9_000)))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"\(0 bytes"),
        (b"plain text", "not an image of a known format"),
        (encoded(noise_image(0, 64, 64))[:2000], "truncated"),
        (encoded(noise_image(0, 64, 64), "JPEG")[:600], "Truncated"),
        (bomb(), "exceeds limit|more than"),
        (medium_bomb(), "9000 x 9000 has 81,000,000 pixels, an image at most 80,000,000"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "32-bit"),
        (encoded(noise_image(0), "ICO"), "not an image of a known format"),
    ],
    ids=["empty", "text", "half a PNG", "half a JPEG", "bomb", "medium bomb", "32-bit", "other format"],
)
def test_unreadable_images_are_refused_by_name(tmp_path: Path, content: bytes, problem: str) -> None:
    save(tmp_path / "1.png", encoded(noise_image(0)))
    save(tmp_path / "2.png", content)
    with pytest.raises(UserError, match=rf"2\.png cannot be read.*{problem}") as caught:
        read(tmp_path)
    assert "\n" not in str(caught.value)


def test_of_an_animation_the_middle_frame_counts(tmp_path: Path) -> None:
    [file] = pictures.save_images(torch.arange(5.0).div(255).reshape(1, 5, 1, 1, 1).expand(1, 5, 3, 8, 8), tmp_path)
    assert opened(file.read_bytes()).unique().tolist() == [2]
    assert opened(encoded(noise_image(0), "GIF")).shape == (3, 8, 8)


def test_mixed_sizes_are_refused_unless_allowed(tmp_path: Path) -> None:
    for name, side in {"1": 8, "2": 8, "3": 9, "4": 8}.items():
        save(tmp_path / f"{name}.png", encoded(noise_image(0, side, side)))
    with pytest.raises(UserError, match=r"3\.png has 9 x 9 pixels, those before it 8 x 8"):
        read(tmp_path, 2)
    batches = read(tmp_path, 4, mixed_sizes=True)
    assert [tuple(batch.images.shape) for batch in batches] == [(2, 3, 8, 8), (1, 3, 9, 9), (1, 3, 8, 8)]


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_images_and_labels(tmp_path: Path, as_struct: bool) -> None:
    contents = [encoded(noise_image(seed)) for seed in range(5)]
    cells = [{"bytes": content, "path": None} for content in contents] if as_struct else contents
    file = parquet_file(tmp_path / "d.parquet", image=cells, label=[3, 1, 4, 1, 5])
    batches = read(file, 3)
    assert torch.equal(batches[0].images, torch.stack([pixels_of(noise_image(seed)) for seed in range(3)]))
    assert torch.cat([batch.labels for batch in batches]).tolist() == [3, 1, 4, 1, 5]
    assert len(open_images(file)) == 5


def test_parquet_without_integer_labels_has_none(tmp_path: Path) -> None:
    images = [encoded(noise_image(0))] * 2
    assert read(parquet_file(tmp_path / "a", image=images))[0].labels is None
    assert read(parquet_file(tmp_path / "b", image=images, label=["cat", "dog"]))[0].labels is None
    assert read(parquet_file(tmp_path / "c", image=images, label=[1, None]))[0].labels is None


def test_unusable_parquet_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column `image`.*picture, label"):
        open_images(parquet_file(tmp_path / "a", picture=[b""], label=[0]))
    with pytest.raises(UserError, match="no column `image` of bytes"):
        open_images(parquet_file(tmp_path / "b", image=["path.png"]))
    with pytest.raises(UserError, match="no rows"):
        open_images(parquet_file(tmp_path / "c", image=pa.array([], pa.binary())))
    with pytest.raises(UserError, match=r"row 1 of .* cannot be read \(0 bytes"):
        read(parquet_file(tmp_path / "d", image=[encoded(noise_image(0)), None]))
    save(tmp_path / "e", parquet_file(tmp_path / "f", image=[b"x" * 5000]).read_bytes()[:-10])
    with pytest.raises(UserError, match="cannot be read as a parquet file"):
        open_images(tmp_path / "e")


def test_places_without_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        open_images(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no image.*no model_index\.json"):
        open_images(tmp_path)


@pytest.mark.parametrize("marker", ["model_index.json", "student/model_index.json"])
def test_pictures_of_a_card_or_a_run_are_no_images(tmp_path: Path, marker: str) -> None:
    save(tmp_path / "images/0.png", encoded(noise_image(0)))
    assert len(open_images(tmp_path)) == 1
    save(tmp_path / marker, b"{}")
    with pytest.raises(UserError, match="holds a pipeline, and images are wanted: draw some with fastgen sample"):
        open_images(tmp_path)


def zip_file(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tar_file(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_zip_images_come_in_the_order_of_their_names_with_the_labels_of_dataset_json(tmp_path: Path) -> None:
    members = {f"{seed}.png": encoded(noise_image(seed)) for seed in (2, 0, 1)}
    labels = json.dumps({"labels": [["0.png", 7], ["1.png", 8], ["2.png", 9]]}).encode()
    (batch,) = read(zip_file(tmp_path / "a.zip", members | {"dataset.json": labels, "notes.txt": b"x"}))
    assert torch.equal(batch.images, torch.stack([pixels_of(noise_image(seed)) for seed in range(3)]))
    assert batch.labels.tolist() == [7, 8, 9]
    assert read(zip_file(tmp_path / "b.zip", members))[0].labels is None


def test_tar_shards_are_read_in_order_and_classes_belong_to_the_image_of_their_name(tmp_path: Path) -> None:
    for shard in (1, 0):
        members = {}
        for seed in (2 * shard, 2 * shard + 1):
            members |= {f"{seed}.cls": str(seed + 3).encode(), f"{seed}.png": encoded(noise_image(seed))}
        tar_file(tmp_path / f"{shard}.tar", members)
    (batch,) = read(tmp_path)
    assert torch.equal(batch.images, torch.stack([pixels_of(noise_image(seed)) for seed in range(4)]))
    assert batch.labels.tolist() == [3, 4, 5, 6]
    assert len(open_images(tmp_path)) == 4
    assert len(open_images(tmp_path / "1.tar")) == 2


def test_damaged_archives_are_refused_by_name(tmp_path: Path) -> None:
    for name in ("a.zip", "a.tar"):
        save(tmp_path / name, b"x" * 3000)
        with pytest.raises(UserError, match=rf"{name} cannot be read"):
            open_images(tmp_path / name)
    with pytest.raises(UserError, match="holds no image"):
        open_images(zip_file(tmp_path / "b.zip", {"a.txt": b""}))
    whole = zip_file(tmp_path / "c.zip", {"1.png": encoded(noise_image(0))}).read_bytes()
    save(tmp_path / "c.zip", whole.replace(b"IHDR", b"IHDX"))  # the archive's own checksum fails
    with pytest.raises(UserError, match=r"1\.png of .*c\.zip cannot be read"):
        read(tmp_path / "c.zip")


def test_bad_images_are_skipped_on_request_and_named(tmp_path: Path) -> None:
    contents = [encoded(noise_image(0)), b"", encoded(noise_image(1, 9, 9)), encoded(noise_image(2)), bomb()]
    for number, content in enumerate(contents):
        save(tmp_path / f"{number}.png", content)
    reading = Reading(2, skip_bad=True)
    read_back = torch.cat([batch.images for batch in image_batches(open_images(tmp_path), reading)])
    assert torch.equal(read_back, torch.stack([pixels_of(noise_image(seed)) for seed in (0, 2)]))
    assert [Path(skip.name).name for skip in reading.skipped] == ["1.png", "2.png", "4.png"]
    assert "0 bytes" in reading.skipped[0].reason
    assert "9 x 9 pixels" in reading.skipped[1].reason


def test_many_images_are_decoded_by_processes_in_the_same_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    contents = [b"" if number == 20 else encoded(noise_image(number)) for number in range(50)]
    file = parquet_file(tmp_path / "a.parquet", image=contents, label=list(range(50)))
    share = range(5, 48)
    by_threads, by_processes = (Reading(8, skip_bad=True, workers=2) for _ in range(2))
    alone = list(image_batches(open_images(file), by_threads, share))
    monkeypatch.setattr("eval.images.decode.MANY", 40)
    here: list[str] = []
    whole = images._pixels

    def pixels(image: EncodedImage) -> images.Pixels:
        here.append(image.name)
        return whole(image)

    monkeypatch.setattr(images, "_pixels", pixels)
    together = list(image_batches(open_images(file), by_processes, share))
    assert here == []  # this process decoded none
    assert [batch.labels.tolist() for batch in together] == [batch.labels.tolist() for batch in alone]
    assert [len(batch.images) for batch in together] == [8] * 5 + [2]
    for one, other in zip(alone, together, strict=True):
        assert torch.equal(one.images, other.images)
    assert [skip.name for skip in by_processes.skipped] == [skip.name for skip in by_threads.skipped]
    assert "row 20 of" in by_processes.skipped[0].name
    with pytest.raises(UserError, match="row 20 of"):
        list(image_batches(open_images(file), Reading(8, workers=2)))


def test_the_next_batch_is_made_while_the_last_one_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = parquet_file(tmp_path / "a.parquet", image=[encoded(noise_image(number)) for number in range(6)])
    made: list[int] = []
    second = threading.Event()

    def batch(decoded: list[images._Decoded]) -> ImageBatch:
        made.append(len(decoded))
        if len(made) == 2:
            second.set()
        return ImageBatch(torch.stack([one.pixels for one in decoded]), None)

    monkeypatch.setattr(images, "_batch", batch)
    batches = image_batches(open_images(file), Reading(2))
    next(batches)
    assert second.wait(10)
    batches.close()
    assert len(made) == 2
