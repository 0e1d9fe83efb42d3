"""Every edit of an export is noticed, and what kernels round is none."""

import copy
import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from exporting import Student, edit, exported, family_student

from fastgen.errors import UserError
from fastgen.export.export import CARDS
from fastgen.export.rebuild import verify_folder
from fastgen.export.verify import Export, verify
from fastgen.manifest import write_manifest

pytestmark = pytest.mark.usefixtures("verified_here")


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Student, Path]:
    """A student of two steps and its export, both to be left as they are."""
    student = family_student("ddpm", (2,), "ode")
    return student, exported(student, tmp_path_factory.mktemp("once") / "student")


@pytest.fixture
def ddpm(once: tuple[Student, Path], tmp_path: Path) -> tuple[Student, Path]:
    """That student, to be left as it is, and a copy of its export."""
    return once[0], Path(shutil.copytree(once[1], tmp_path / "student"))


EDITS = {
    "prediction type": {"prediction_type": "v_prediction"},
    "betas": {"beta_end": 0.03},
    "clipping": {"clip_sample": True},
    "clean end": {"set_alpha_to_one": False, "steps_offset": 0},
    "spacing": {"timestep_spacing": "leading"},
    "the other sampler": {"_class_name": "LCMScheduler"},
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_scheduler_fails_against_what_training_knows(ddpm, name):
    student, folder = ddpm
    edit(folder, "scheduler/scheduler_config.json", **EDITS[name])
    if "_class_name" in EDITS[name]:
        index = json.loads((folder / "model_index.json").read_text())
        edit(folder, "model_index.json", scheduler=[index["scheduler"][0], "LCMScheduler"])
    how = "the stock pipeline stops at the timesteps" if name == "spacing" else "the stock pipeline"
    with pytest.raises(UserError, match=f"does not sample as it was trained: at 2 steps {how}"):
        verify(Export(str(folder)), student.schedules[0], student.ours)


@pytest.mark.parametrize("name", ["prediction type", "betas"])
def test_an_edited_scheduler_fails_against_the_notes_alone(ddpm, name):
    _, folder = ddpm
    assert len(verify_folder(folder)) == 1
    edit(folder, "scheduler/scheduler_config.json", **EDITS[name])
    write_manifest(folder, but=CARDS)  # as who edits it knowingly
    with pytest.raises(UserError, match=r"was changed since it was trained: (alpha|sigma|p|q) is"):
        verify_folder(folder)


class Rounded(torch.nn.Module):
    """A network whose output is off by a share of it: always, or when it is called with several samples."""

    def __init__(self, net: torch.nn.Module, share: float, *, always: bool) -> None:
        super().__init__()
        self.net, self.config, self.share, self.always = net, net.config, share, always

    def forward(self, sample, *args, **kwargs):
        (out,) = self.net(sample, *args, **kwargs | {"return_dict": False})
        return (out * (1 + self.share * (self.always or len(sample) > 1)),)


@pytest.mark.parametrize(
    ("share", "always", "passes"), [(3e-5, False, True), (3e-5, True, False), (3e-3, False, False)]
)
def test_kernels_may_round_but_weights_may_not_differ(tmp_path, share, always, passes):
    student = family_student("ddpm", (2,), "ode")
    folder = exported(student, tmp_path / "student")
    model = copy.copy(student.ours.model())
    model.net = Rounded(model.net, share, always=always)
    check = nullcontext() if passes else pytest.raises(UserError, match="differs from the sampler of training")
    with check:
        (agreement,) = verify(Export(str(folder)), student.schedules[0], replace(student.ours, model=lambda: model))
        assert 1e-5 < agreement.difference < 1e-4
