"""Draw images from a student or any other stock pipeline: the same code as `fastgen sample`."""

import sys

from fastgen.cli import main
from fastgen.command import leave

if __name__ == "__main__":
    leave(main(["sample", *sys.argv[1:]]))
