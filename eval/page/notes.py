"""What a reader must know: verdicts, warnings, and where every number comes from."""

from collections.abc import Iterator, Mapping
from typing import Any

from ..images import flagged
from ..rows import Row as FullRow
from .markup import Markup, bullets, join, number, section, tag
from .sides import Row

_LISTED = 20  # skipped images that are named


def verdicts(data: Mapping[str, Any]) -> Markup:
    """What was asserted of the student, and whether it holds."""
    return bullets((_verdict(one) for one in data["assertions"]), class_="verdicts")


def warnings(data: Mapping[str, Any]) -> Markup:
    """Reasons to distrust the figures, if there are any."""
    found = list(_warnings(data))
    return tag("aside", tag("h2", "Warnings"), bullets(found), class_="warnings") if found else Markup()


def provenance(data: Mapping[str, Any]) -> Markup:
    """Protocol, files with their hashes, seeds, machine, versions, settings, and the command to do it again."""
    told = data["provenance"]
    if not told:
        return section("provenance", "Provenance", tag("p", "The file does not say where its figures come from."))
    return section(
        "provenance",
        "Provenance",
        _pairs({**_protocol(data["protocol"]), **_origin(told)}),
        tag("h3", "Command"),
        tag("pre", tag("code", told["command"]), tabindex=0),
        tag("h3", "Image sets"),
        _sources(data["rows"]),
        _folded("Versions", _pairs(told["versions"])),
        _folded("Settings", _pairs({name: _plain(value) for name, value in told["settings"].items()})),
        _skipped(data["rows"]),
    )


def _verdict(one: Mapping[str, Any]) -> Markup:
    found = ", ".join(
        f"{each['row']}: {'not measured' if each['value'] is None else number(each['value'])}"
        for each in one["measured"]
    )
    word = tag("strong", "holds" if one["holds"] else "FAILS", class_="good" if one["holds"] else "bad")
    return join([word, " ", tag("code", one["text"]), f" ({found or 'no such student row'})"])


def _warnings(data: Mapping[str, Any]) -> Iterator[str]:
    protocol, rows = data["protocol"], data["rows"]
    small = sorted({row["num"] for row in rows if row["num"] is not None and row["num"] < protocol["min_images"]})
    if small:
        yield (
            f"N = {', '.join(f'{num:,}' for num in small)} is below {protocol['min_images']:,}: FID is mostly bias at "
            "such an N, which its interval does not show."
        )
    sizes = {row["num"] for row in rows if row["role"] != "real"}
    if len(sizes) > 1:
        yield "Generated rows differ in N; FID falls as N grows, so compare only rows of equal N."
    if len({row["source"]["first_seed"] for row in rows if row["source"]["kind"] == "pipeline"}) > 1:
        yield "Rows start at different seeds; pictures side by side are not of one seed."
    if protocol["reference_extractor"] is None:
        yield "The reference does not name its extractor; FID means nothing if it is another one."
    elif protocol["reference_extractor"] != protocol["extractor"]:
        yield f"The reference was measured by another extractor: {protocol['reference_extractor']}."
    if protocol["precision"] != "float32":
        yield f"Features were computed in {protocol['precision']}; do not compare them with float32 figures."
    for row in rows:
        if row.get("flagged"):
            yield flagged.told(FullRow(**row), skipped=data["provenance"]["settings"]["skip_flagged"])
        if row["skipped"]:
            yield f"{row['title']}: images left out: {len(row['skipped']):,}; they are named under provenance."


def _protocol(protocol: Mapping[str, Any]) -> dict[str, str]:
    return {
        "protocol": protocol["name"],
        "extractor": protocol["extractor"],
        "extractor of the reference": protocol["reference_extractor"] or "unknown",
        "resizes": "yes" if protocol["resizes"] else "no",
        "precision": protocol["precision"],
        "CLIP": protocol["clip"] or "none",
    }


def _origin(told: Mapping[str, Any]) -> dict[str, str]:
    reference, seeds = told["reference"], told["seeds"]
    size = "unknown N" if reference["num"] is None else f"N = {reference['num']:,}"
    return {
        "reference": f"{reference['path']} ({reference['kind']}, {size}, {reference['skipped']} skipped)",
        "seeds": f"{seeds[0]} to {seeds[1]}" if seeds else "nothing was generated",
        "prompts": _file(told["prompts"]),
        "labels": _file(told["labels"]),
        "device": told["device"],
        "processes": str(told["processes"]),
        "started": told["started"],
        "seconds": number(told["seconds"]),
    }


def _file(file: Mapping[str, Any] | None) -> str:
    return "no file" if file is None else f"{file['path']} ({file['count']:,} lines, sha256 {file['sha256']})"


def _sources(rows: list[Row]) -> Markup:
    keys = ("path", "kind", "dtype", "guidance", "negative_prompt", "arguments", "first_seed")
    names = ("", "path", "kind", "dtype", "guidance", "negative prompt", "call", "first seed", "steps", "batch size")
    lines = [
        tag(
            "tr",
            tag("th", row["title"], scope="row"),
            *(tag("td", _plain(row["source"].get(key))) for key in keys),
            *(tag("td", _plain(value)) for value in (row["steps"], (row["costs"] or {}).get("batch_size"))),
        )
        for row in rows
    ]
    heads = [tag("th", name, scope="col") if name else tag("td") for name in names]
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *lines), class_="words")
    return tag("div", table, class_="scroll", tabindex=0)


def _skipped(rows: list[Row]) -> Markup:
    lists = [
        join(
            [
                tag("h3", f"{row['title']}, images left out: {len(row['skipped']):,}"),
                bullets(f"{skip['name']}: {skip['reason']}" for skip in row["skipped"][:_LISTED]),
                tag("p", "and more, named in metrics.json") if len(row["skipped"]) > _LISTED else Markup(),
            ]
        )
        for row in rows
        if row["skipped"]
    ]
    return _folded("Skipped images", join(lists)) if lists else Markup()


def _folded(title: str, body: Markup) -> Markup:
    return tag("details", tag("summary", title), body)


def _pairs(values: Mapping[str, str]) -> Markup:
    return tag("dl", *(join([tag("dt", name), tag("dd", value)]) for name, value in values.items()))


def _plain(value: Any) -> str:
    """A setting for people: a dash for none, lists with commas."""
    if value is None:
        return number(None)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={one}" for name, one in value.items()) or number(None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
