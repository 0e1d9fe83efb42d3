"""Classes of a user's own: files that hold an objective and a source, and an installed package that offers them."""

from pathlib import Path

OBJECTIVE = '''
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fastgen.objectives import ConsistencyTraining


@dataclass(frozen=True)
class Mine(ConsistencyTraining):
    """Consistency training, louder (arXiv:2303.01469)."""

    loudness: Annotated[float, Field(gt=0, le=10)] = 1.0

    def generator(self, roles, batch):
        return {f"loud_{name}": self.loudness * term for name, term in super().generator(roles, batch).items()}
'''
SOURCE = '''
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from fastgen.data import Items


@dataclass(frozen=True)
class Squares:
    """Grey squares."""

    count: Annotated[int, Field(ge=1)]

    has_images = True
    num_classes = 10
    prompts = None

    def check(self): ...

    def __len__(self):
        return self.count

    def items(self, indices):
        labels = torch.tensor([i % 10 for i in indices])
        return Items(images=(labels / 10)[:, None, None, None].expand(-1, 1, 16, 16).clone(), labels=labels)
'''


def package(site: Path, *, name: str = "louder", version: str = "1.0") -> None:
    """Installs a package with both into a folder of `sys.path`."""
    (site / f"{name}.py").write_text(OBJECTIVE + SOURCE)
    about = site / f"{name}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    offered = {"objectives": f"loud = {name}:Mine", "sources": f"squares = {name}:Squares"}
    (about / "entry_points.txt").write_text("".join(f"[fastgen.{kind}]\n{entry}\n" for kind, entry in offered.items()))
