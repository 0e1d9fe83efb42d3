"""Draw images from a student or any other stock pipeline: the same code as `fastgen sample`."""

import sys

from fastgen.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
