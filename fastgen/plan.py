"""What a run would do, from its config alone."""

from .config import Config


def plan(config: Config) -> str:
    return ""
