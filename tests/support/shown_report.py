"""Pages of a made-up report whose figures are changed."""

import json
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

from dom import parse

from eval.metrics_json import Report
from eval.page import html
from eval.page.pictures import Pictures

Data = dict[str, Any]


def shown(folder: Path, data: Data) -> Element:
    """The page of other data beside the same pictures."""
    return parse(html.page(Report.model_validate_json(json.dumps(data), strict=True), Pictures(folder)))


def busy(data: Data) -> Data:
    """The report with all that it may hold: blocks of seeds, skipped and flagged images, arguments of a call, a run."""
    data["rows"][-1]["metrics"]["fid"] |= {"spread": 0.125, "values": [3.8, 3.9, 4.0]}
    data["rows"][-1] |= {
        "skipped": [{"name": f"bad-{i}.png", "reason": "truncated"} for i in range(21)],
        "flagged": [{"image": 1, "flags": ["nsfw_content_detected"]}],
    }
    data["rows"][-1]["source"] |= {"arguments": {"height": 640}, "negative_prompt": "owl"}
    data["provenance"]["labels"] = {"path": "labels.txt", "sha256": "cd" * 32, "count": 11}
    data["protocol"] |= {"clip": "CLIP of a kind", "precision": "tf32"}
    series = {"generator/dm": [(10.0, 0.5), (30.0, 0.25)], "quality/fid": [(10.0, 4.0), (30.0, 3.0)]}
    told = [{"name": name, "points": points} for name, points in series.items()]
    data["training"] = {"path": "mine", "stages": [20.0], "series": told}
    return data
