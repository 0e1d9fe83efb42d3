"""Lossless files, grids and labelled rows."""

import numpy as np
import torch
from PIL import Image

from fastgen.sampling import pictures


def test_pictures_round_and_are_lossless(tmp_path):
    levels = torch.arange(256).reshape(1, 1, 16, 16) / 255
    [path] = pictures.save_images(levels + 0.001, tmp_path, start=7)
    assert path.name == "00007.png"
    assert np.array_equal(np.asarray(Image.open(path)), np.arange(256).reshape(16, 16))


def test_a_grid_runs_row_by_row():
    images = torch.stack([torch.full((3, 4, 4), value) for value in (0.0, 0.2, 0.4, 0.6, 0.8)])
    sheet = np.asarray(pictures.grid(images, columns=3))
    assert sheet.shape == (2 * 6 + 2, 3 * 6 + 2, 3)
    assert sheet[3, 3, 0] == 0
    assert sheet[3, 9, 0] == 51
    assert sheet[9, 3, 0] == 153
    assert sheet[0, 0, 0] == 255


def test_rows_have_labels_and_magnified_images():
    rows = {"real": torch.zeros(2, 1, 8, 8), "student, 1 step": torch.full((2, 3, 8, 8), 0.2)}
    sheet = np.asarray(pictures.labelled_rows(rows, scale=4))
    strip = 2 * (8 * 4 + 2) + 2
    label = sheet[:, : sheet.shape[1] - strip]
    assert sheet.shape[0] == 2 * (8 * 4 + 2 * 2)
    assert (label < 128).any(axis=(1, 2)).sum() > 10  # ink of the labels
    assert (sheet[4:30, -30:-4] == 0).all()
    assert (sheet[40:66, -30:-4] == 51).all()
