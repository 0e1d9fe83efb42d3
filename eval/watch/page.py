"""The page of a run as one document that loads nothing from anywhere but its own server."""

from ..page.html import document, policy_of
from .files import RunFiles
from .view import RunView

CONNECTS = "connect-src 'self'; form-action 'self'"
"""What the page of a run may do beside that of a report: ask its own server."""

SCRIPT = "run.js"
POLICY = policy_of(SCRIPT, CONNECTS)


def page(run: RunFiles, *, token: str, asked: bool) -> str:
    """The whole document.

    Args:
        token: what a request to stop has to show.
        asked: whether the run was asked to stop.
    """
    return document(
        "run.html.jinja",
        SCRIPT,
        allowed=CONNECTS,
        view=RunView.of(run),
        token=token,
        asked=asked,
    )
