"""Distil a teacher pipeline into a student of a few steps: the same code as `fastgen train`."""

import sys

from fastgen.cli import main
from fastgen.command import leave

if __name__ == "__main__":
    leave(main(["train", *sys.argv[1:]]))
