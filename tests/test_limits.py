"""What is taken of what comes from elsewhere: bombs are refused before they go off, and text is text."""

import io
import json
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from encoded import encoded, noise_image, save
from PIL import Image

from eval.images.decode import decode
from eval.images.encoded import EncodedImage
from eval.images.sets import open_images
from eval.measures.statistics_file import load_statistics
from fastgen.data import ParquetImages, PromptFile, pages
from fastgen.data.decode import decode as decode_to_train
from fastgen.data.pages import check_packing
from fastgen.errors import UserError
from fastgen.limits import Cap, plain, read_bytes

PICTURE, ANIMATION = encoded(noise_image(0)), encoded(noise_image(0, 16, 16), "GIF")
PLAIN_PICTURE = encoded(Image.new("RGB", (1_000, 1_000)))  # 3 MB of one colour in 3 KB


@pytest.fixture(autouse=True)
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()  # some of Pillow's formats draw pictures when they are imported
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    monkeypatch.setattr("fastgen.limits.SMALL", 2**20)  # bombs of a megabyte


def test_a_picture_that_would_become_a_thousand_times_its_bytes_is_refused() -> None:
    with pytest.raises(UserError, match=r"1000 x 1000 has \d,\d+ bytes that would become 3,000,000"):
        decode(EncodedImage("it", PLAIN_PICTURE, None))
    with pytest.raises(UserError, match="1000 x 1000 has"):
        decode_to_train(io.BytesIO(PLAIN_PICTURE), "it", size=(8, 8), channels=3)


def test_an_animation_that_takes_an_hour_to_reach_its_middle_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.GifImagePlugin.GifImageFile.n_frames", 10**8)
    with pytest.raises(UserError, match="it has 12,800,000,000 pixels before its middle"):
        decode(EncodedImage("it", ANIMATION, None))


def packed(path: Path, cells: list[bytes]) -> Path:
    parquet.write_table(pa.table({"image": cells}), path, compression="zstd")
    return path


def test_a_column_that_packs_as_no_pictures_do_is_refused(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.parquet", [bytes(2**20 + 1), b"x"])
    assert file.stat().st_size < 2_000
    with pytest.raises(UserError, match=r"a\.parquet has [\d,]+ bytes that would become 1,0"):
        list(open_images(file))
    with pytest.raises(UserError, match="would become 1,0"):
        ParquetImages(file, 8).items([1])


def believing(content: bytes, size: int) -> bytes:
    """A parquet file whose footer says 100 in the place of a size, in numbers of the same length."""
    told = [size * 2 >> 7 * place & 127 for place in range(4)]
    said = [200 >> 7 * place & 127 for place in range(4)]
    old, new = (bytes([*(byte | 128 for byte in digits[:-1]), digits[-1]]) for digits in (told, said))
    start = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    assert old in content[start:]
    return content[:start] + content[start:].replace(old, new)


def test_a_footer_that_says_less_than_the_pages_is_not_believed(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.parquet", [bytes(2**21), b"x"])
    save(file, believing(file.read_bytes(), parquet.read_metadata(file).row_group(0).total_byte_size))
    assert parquet.read_metadata(file).row_group(0).total_byte_size == 100
    with pytest.raises(UserError, match=r"a\.parquet has [\d,]+ bytes that would become 2,0"):
        list(open_images(file))
    with pytest.raises(UserError, match="would become 2,0"):
        ParquetImages(file, 8).items([1])


def test_one_value_that_stands_for_many_rows_is_unpacked_a_few_times_at_once(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.parquet", [bytes(2**18)] * 100)
    assert file.stat().st_size < 2_000
    assert check_packing(file, ["image"]) == 3
    with pytest.raises(UserError, match="would become 1,5"):
        ParquetImages(file, 8).items([1])


def test_a_column_whose_name_is_no_text_is_damage(tmp_path: Path) -> None:
    name = "mynbiqp"  # read as a struct, it is a whole one
    parquet.write_table(pa.table({name: [b"x"]}), file := tmp_path / "a.parquet", compression=None)
    before, text, after = file.read_bytes().rpartition(b"\x19\x18\x07" + name.encode())
    save(file, before + text.replace(b"\x18", b"\x1c") + after)
    with pytest.raises(UserError, match="cannot be read as a parquet file"):
        check_packing(file, [name])


def test_a_file_that_becomes_shorter_while_it_is_read_is_damage(tmp_path: Path) -> None:
    file = packed(tmp_path / "a.parquet", [PICTURE] * 500)
    with file.open("rb") as opened:
        content = pages._Content(opened)
        os.truncate(file, 100)
        with pytest.raises(IndexError, match="shorter"):
            content.part(content.size - 8, 4)


def test_a_column_is_held_only_as_far_as_its_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = packed(tmp_path / "a.parquet", [PICTURE] * 500)
    monkeypatch.setattr(Cap.COLUMN, "_value_", (100_000, "bytes", "a column", "split the file"))
    with pytest.raises(UserError, match=r"column 'image' of .* bytes, a column at most 100,000"):
        ParquetImages(file, 8).items([1])


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("first", [True, False])
def test_the_name_of_a_tars_member_is_read_only_if_it_is_one(tmp_path: Path, form: int, first: bool) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name in ["a" * 2**17 + ".png"] if first else ["a.png", "a" * 2**17 + ".png"]:
            info = tarfile.TarInfo(name)
            info.size = len(content := PICTURE)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(UserError, match=r"header of an archive's member at most 65,536"):
        open_images(save(tmp_path / "a.tar", buffer.getvalue()))


def test_a_zips_texts_are_unpacked_only_within_their_cap(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.png", PICTURE)
        archive.writestr("dataset.json", b"{}")
    content = bytearray((tmp_path / "a.zip").read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**28 + 1)
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match=r"dataset.json of .* has 268,435,457 bytes, a JSON file at most"):
        list(open_images(tmp_path / "a.zip"))


def test_an_array_is_made_only_if_it_fits_its_cap(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("mu.npy", header.getvalue())
        archive.writestr("sigma.npy", header.getvalue())
    with pytest.raises(UserError, match=r"mu.npy has 8,000,000,000,000 bytes, an array of statistics at most"):
        load_statistics(tmp_path / "a.npz")


def test_an_endless_file_is_read_to_the_cap_and_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cap.TEXT, "_value_", (1000, "bytes", "a text file", "is it another file?"))
    with pytest.raises(UserError, match="/dev/zero has 1,001 bytes, a text file at most 1,000"):
        PromptFile(Path("/dev/zero")).check()


def test_a_path_with_nul_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_bytes(Path("a\0b"), Cap.TEXT)


@pytest.mark.parametrize("text", ["a\0", "a\x1b[2J", "\ud83d", "\x9b31m", "a\x7f", "\x08"])
def test_control_characters_and_halves_of_characters_are_no_text(text: str) -> None:
    with pytest.raises(UserError, match=r"here holds (a control|half of a) character, U\+"):
        plain(text, "here")


@pytest.mark.parametrize("text", ["a\tb\r\n", "\u202eabc", "\U0001f98a", "\u200b", "na\xefve"])
def test_all_else_is_text(text: str) -> None:
    assert plain(text, "here") == text


@pytest.mark.parametrize("file", ["../a.png", "/etc/passwd", "a\x1b.png", 3])
def test_a_manifest_names_files_beside_it_alone(tmp_path: Path, file: object) -> None:
    save(tmp_path / "samples.json", json.dumps({"images": [{"file": file}]}))
    with pytest.raises(UserError, match=r"samples\.json cannot be read"):
        open_images(tmp_path)


def test_the_page_of_reliability_has_every_cap() -> None:
    page = (Path(__file__).parents[1] / "docs" / "reliability.md").read_text(encoding="utf-8")
    assert [cap.name for cap in Cap if f"{cap.most:,} {cap.value[1].split()[0]}" not in page] == []
