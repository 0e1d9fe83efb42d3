"""Distil a teacher pipeline into a student of a few steps: the same code as `fastgen train`."""

import sys

from fastgen.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
