"""A page as a tree, read by the standard library: elements, their words, and where they stand."""

from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree.ElementTree import Element, TreeBuilder

VOID = ("meta", "img", "input", "br")


class _Reader(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tree, self.open = TreeBuilder(), []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, name, attributes):
        assert len({key for key, _ in attributes}) == len(attributes), f"an attribute stands twice in {name}"
        self.tree.start(name, {key: value or "" for key, value in attributes})
        self.open.append(name)
        if name in VOID:
            self.handle_endtag(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name
        self.tree.end(name)

    def handle_data(self, words):
        if self.open:
            self.tree.data(words)


def parse(text: str) -> Element:
    """The root of a document whose elements are all closed, in order."""
    return _Reader(text).tree.close()


def words(element: Element) -> str:
    """All text below an element that is read, spaces as they are seen."""
    return " ".join("".join(_texts(element)).split())


def _texts(element: Element) -> Iterator[str]:
    if element.tag not in ("script", "style"):
        yield element.text or ""
        for one in element:
            yield from _texts(one)
            yield one.tail or ""


def of_class(root: Element, name: str, *classes: str) -> list[Element]:
    """Elements of a name and of all these classes."""
    return [one for one in root.iter(name) if {*classes} <= {*one.get("class", "").split()}]


def having(root: Element, attribute: str) -> list[str]:
    """The values of an attribute, wherever it stands."""
    return [one.attrib[attribute] for one in root.iter() if attribute in one.attrib]


def section(root: Element, name: str) -> Element:
    """The section of an id."""
    (found,) = root.findall(f".//section[@id='{name}']")
    return found


def table(root: Element) -> list[list[str]]:
    """The cells of the first table below, as words."""
    (first, *_) = root.iter("table")
    return [[words(cell) for cell in line] for line in first.iter("tr")]


def shape(root: Element) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every element and the names of its attributes, in the order of the page: all of a page but its text."""
    for one in root.iter():
        yield str(one.tag), tuple(one.keys())
