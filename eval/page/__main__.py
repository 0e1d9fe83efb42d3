"""`python -m eval.page FOLDER`: the page of a report is written again."""

import sys

from .html import main

sys.exit(main())
