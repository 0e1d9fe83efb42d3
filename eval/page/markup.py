"""Elements as strings: text is escaped unless it is Markup, so that data cannot become code."""

from collections.abc import Iterable
from html import escape

_VOID = frozenset({"br", "img", "input", "meta"})


class Markup(str):
    """HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """An element; attributes are escaped, children too unless they are Markup.

    `class_` and `data_steps` are written class and data-steps; True is an attribute without value, False and None
    leave it out.
    """
    words = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(children)}</{name}>")


def join(parts: Iterable[str]) -> Markup:
    """Parts one after the other, escaped unless they are Markup."""
    return Markup("".join(part if isinstance(part, Markup) else escape(part) for part in parts))


def section(name: str, title: str, *parts: str) -> Markup:
    """A part of the page under its heading; nothing if all parts are empty."""
    if not any(parts):
        return Markup()
    heading = tag("h2", title, id=f"{name}-title")
    return tag("section", heading, *parts, id=name, aria_labelledby=f"{name}-title")


def note(text: str) -> Markup:
    """A paragraph of explanation."""
    return tag("p", text, class_="note")


def bullets(lines: Iterable[str], **attributes: str) -> Markup:
    """A list, or nothing."""
    items = [tag("li", line) for line in lines]
    return tag("ul", *items, **attributes) if items else Markup()


def number(value: float | None) -> str:
    """Four significant digits; a dash for what does not apply."""
    if value is None:
        return "\u2013"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _attribute(name: str, value: str | float | bool | None) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f' {name}="{escape(text)}"'
