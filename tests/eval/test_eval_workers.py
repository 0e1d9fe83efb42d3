"""Decoding processes that are killed or hang: the image is named, and nothing waits for ever."""

import os
import signal
import time
from io import BytesIO

import pytest
from PIL import Image

from eval.images import decode
from eval.images.decode import Reading, image_batches
from eval.images.sets import EncodedImage
from fastgen.errors import SilentError, UserError

PIXELS = decode._pixels


class Pictures(list):
    prompts = None


@pytest.fixture
def images(monkeypatch):
    """Eighty pictures, for processes to decode."""
    monkeypatch.setattr(decode, "MANY", 1)
    file = BytesIO()
    Image.new("RGB", (4, 4)).save(file, "png")
    return Pictures(EncodedImage(f"{i}.png", file.getvalue(), None) for i in range(80))


def all_of(images, **reading):
    return sum(len(batch.images) for batch in image_batches(images, Reading(workers=2, **reading)))


def test_the_image_that_kills_its_process_is_named(images, monkeypatch):
    def deadly(image):
        if image.name == "37.png":
            os.kill(os.getpid(), signal.SIGKILL)
        return PIXELS(image)

    monkeypatch.setattr(decode, "_pixels", deadly)
    with pytest.raises(UserError, match=r"^image 37.png \(\d+ bytes\) ends the process that decodes it"):
        all_of(images)


def test_where_no_image_kills_its_process_those_in_question_are_named(images, monkeypatch, tmp_path):
    once = tmp_path / "once"

    def unlucky(image):
        if image.name == "37.png" and not once.exists():
            once.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return PIXELS(image)

    monkeypatch.setattr(decode, "_pixels", unlucky)
    with pytest.raises(UserError, match=r"a decoding process was killed while images \d+.png to 79.png were decoded"):
        all_of(images)


@pytest.mark.parametrize("threads", [False, True])
def test_a_decoder_that_hangs_is_not_waited_for(images, monkeypatch, threads):
    def endless(image):
        if image.name == "37.png":
            time.sleep(3)
        return PIXELS(image)

    monkeypatch.setattr(decode, "_pixels", endless)
    monkeypatch.setattr(decode, "MANY", 1000 if threads else 1)
    start = time.monotonic()
    with pytest.raises(SilentError, match=r"decoding the images 32.png to 47.png has not come to an end in 0.3 s"):
        all_of(images, patience_s=0.3)
    assert time.monotonic() - start < 2.5
