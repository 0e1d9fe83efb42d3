"""Decoding: whatever users put into an image file becomes square pixels, or a refusal that names the file."""

import time
from io import BytesIO

import numpy as np
import pytest
import torch
from encoded import bytes_of, encoded, noise_image, pixels_of, save
from PIL import Image, ImageOps

from fastgen.data import ImageFolder
from fastgen.data.decode import decode, size_of
from fastgen.data.pixels import PixelCache, to_images, to_uint8
from fastgen.errors import UserError


def decoded(content: bytes, size: int = 8, channels: int = 3) -> np.ndarray:
    return decode(BytesIO(content), "picture.png", size=(size, size), channels=channels)


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = noise_image(0)
    assert np.array_equal(decoded(encoded(image)), pixels_of(image).numpy())


def test_the_centre_square_is_cut_out_before_resizing():
    image = noise_image(0, width=13, height=8)
    assert np.array_equal(decoded(encoded(image)), pixels_of(image.crop((2, 0, 10, 8))).numpy())
    tall = noise_image(1, width=32, height=40)
    expected = tall.crop((0, 4, 32, 36)).resize((8, 8), Image.Resampling.LANCZOS)
    assert np.array_equal(decoded(encoded(tall)), pixels_of(expected).numpy())


def test_shrinking_antialiases():
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32)))
    assert np.ptp(decoded(encoded(stripes), size=16, channels=1)[:, :, 2:-2]) <= 4


def test_exif_orientation_is_applied():
    image = noise_image(0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    content = encoded(image, exif=exif.tobytes())
    assert np.array_equal(decoded(content), pixels_of(image.transpose(Image.Transpose.ROTATE_270)).numpy())


def test_transparency_is_composed_over_white():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    half = Image.new("RGBA", (8, 8), (0, 0, 0, 128))
    assert (decoded(encoded(clear)) == 255).all()
    assert (decoded(encoded(half)) == 127).all()
    palette = noise_image(0).quantize(4)
    content = encoded(palette, transparency=bytes([0, 0, 0, 0]))
    assert (decoded(content) == 255).all()


def test_sixteen_bit_greys_are_scaled_not_clipped():
    levels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    content = encoded(Image.fromarray(levels))
    assert np.array_equal(decoded(content, channels=1)[0], levels >> 8)
    assert np.array_equal(decoded(content)[2], levels >> 8)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_asked_for(mode, channels):
    content = encoded(noise_image(0).convert(mode), "JPEG" if mode in ("CMYK", "YCbCr") else "PNG")
    assert decoded(content, channels=channels).shape == (channels, 8, 8)


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decoded(content)[:, 0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image():
    pixels = decoded(encoded(Image.new("RGB", (1, 1), (1, 2, 3))))
    assert (pixels == np.array([1, 2, 3])[:, None, None]).all()


JPEG = encoded(noise_image(0, 64, 64), "JPEG")
BAD_IMAGES = {
    "zero bytes": b"",
    "text": b"<html>404 not found</html>",
    "truncated JPEG": JPEG[: len(JPEG) // 2],
    "truncated PNG": encoded(noise_image(0, 64, 64))[:-2000],
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n",
    "32-bit": encoded(Image.fromarray(np.ones((8, 8), np.float32)), "TIFF"),
    "bomb": encoded(Image.new("1", (10_000, 8_001))),
    "huge bomb": encoded(Image.new("1", (20_000, 20_000))),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_what_is_no_usable_image_is_refused_by_name(kind, tmp_path):
    save(tmp_path / "good.png", encoded(noise_image(0)))
    bad = save(tmp_path / "straw.png", BAD_IMAGES[kind])
    folder = ImageFolder(tmp_path, 8, unreadable=0)
    folder.check()
    with pytest.raises(UserError) as refusal:
        folder.items([0, 1])
    assert str(bad) in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert folder.items([0]).images.shape == (1, 3, 8, 8)


def test_postscript_never_reaches_its_interpreter():
    with pytest.raises(UserError, match="not an image of a known format"):
        decoded(BAD_IMAGES["PostScript"])


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(UserError, match="pixels"):
        decoded(BAD_IMAGES["bomb"])


def test_levels_come_back_as_they_were_and_others_are_rounded_and_clipped():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_images(levels) / 2 + 0.5), levels)
    shown = to_uint8(torch.tensor([-0.1, 0.4 / 255, 0.6 / 255, 254.4 / 255, 1.1]))
    assert shown.tolist() == [0, 0, 1, 254, 255]


def test_a_shape_that_is_no_square_is_cut_out_of_the_middle():
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (10, 0, 30, 20))
    pixels = decode(BytesIO(encoded(image)), "it", size=(40, 40), channels=3)
    assert (pixels[0].min(), pixels[2].max()) == (255, 0)
    assert decode(BytesIO(encoded(image)), "it", size=(10, 20), channels=3).shape == (3, 10, 20)
    assert set(decode(BytesIO(encoded(image)), "it", size=(10, 20), channels=3)[2].ravel()) >= {0, 255}


def test_transparency_lies_over_the_colour_that_is_chosen():
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    pixels = decode(BytesIO(encoded(image)), "it", size=(8, 8), channels=3, background="#00ff80")
    assert pixels[:, 0, 0].tolist() == [0, 255, 128]


@pytest.mark.parametrize(("name", "kind"), [("a.jfif", "JPEG"), ("a.avif", "AVIF"), ("a.webp", "WEBP")])
def test_other_suffixes_that_people_have_are_images_too(name, kind, tmp_path):
    save(tmp_path / name, encoded(Image.new("RGB", (8, 8), (200, 30, 60)), kind))
    pixels = bytes_of(ImageFolder(tmp_path, 8).items([0]).images)[0, :, 4, 4].int()
    assert (pixels - torch.tensor([200, 30, 60])).abs().max() < 6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_is_that_of_the_upright_image(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = encoded(Image.new("RGB", (12, 6)), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(BytesIO(content)))
    assert size_of(BytesIO(content), "it") == (upright.height, upright.width)
    assert decode(BytesIO(content), "it", size=size_of(BytesIO(content), "it"), channels=3).shape[1:] == (
        upright.height,
        upright.width,
    )


def test_a_background_that_is_no_colour_is_refused(tmp_path):
    save(tmp_path / "a.png", encoded(noise_image(0)))
    with pytest.raises(UserError, match="'blurple', which is no colour"):
        ImageFolder(tmp_path, 8, background="blurple").check()


def test_what_all_images_are_read_from_is_made_ready_once():
    """A cached property is made by every thread that asks for it at the same time, from Python 3.12 on."""
    made, ready = 0, False

    def pixels(index: int) -> np.ndarray:
        nonlocal made, ready
        if not ready:
            made += 1
            time.sleep(0.05)
            ready = True
        return np.full((1, 2, 2), index, np.uint8)

    cache = PixelCache(pixels, 16, size=64, limit_gib=1.0, unreadable=0)
    images, found = cache.images(range(16))
    assert (made, found) == (1, list(range(16)))
    assert images[:, 0, 0, 0].tolist() == found
