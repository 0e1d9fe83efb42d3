"""SFD: what is forgotten is matched to what the teacher is asked in its place, all else to the teacher."""

from dataclasses import replace

import pytest
import torch
from closed_forms import (
    COVARIANCE,
    MEAN,
    PROCESSES,
    close,
    gaussian_roles,
    processes,
    quasi_random,
    scripted,
    slopes,
)
from mutants import Mutant
from torch import Tensor

from fastgen.objectives import Batch
from fastgen.objectives.distribution.sfd import ScoreForgetting
from fastgen.objectives.distribution.sid import SiD
from fastgen.objectives.parts import matching
from fastgen.objectives.parts.anchors import Segments
from fastgen.objectives.parts.gan import GAN
from fastgen.objectives.parts.stabilisers import Stabilisers
from fastgen.process import Process
from fastgen.proofs.analytic import ExactDenoiser, Mixture
from fastgen.proofs.bed import Bed, batch_for, bed_of, distance, seeded

FORGETS = ScoreForgetting(instead={"0": "1"})
TEACHER = Mixture(torch.stack([MEAN + 2, MEAN]), torch.stack([2 * COVARIANCE, COVARIANCE]), labels=torch.arange(2))
"""Class 1 is REAL."""


def forgotten(z: Tensor, eps: Tensor, label: int) -> Batch:
    """Rows that are asked for a class, of which the teacher is always asked for class 1."""
    labels = torch.full((len(z),), label)
    batch = scripted(z, eps)
    batch.cond, batch.kept = TEACHER.cond(labels), TEACHER.cond(torch.ones_like(labels))
    return batch


def check_gradient(process: Process) -> None:
    """Asked for either class it is SiD's, of a teacher that knows nothing but class 1."""
    z, eps = quasi_random(2, 256)
    plain = slopes(gaussian_roles(process), SiD(alpha=1.0), scripted(z, eps), "sid")
    for label in (0, 1):
        law = gaussian_roles(process).generator.law()
        own = Mixture(law.means, law.covariances, labels=torch.tensor([label]))
        fake = ExactDenoiser(process, own)
        roles = gaussian_roles(process, real_score=ExactDenoiser(process, TEACHER), fake_score=fake)
        close(slopes(roles, FORGETS, forgotten(z, eps, label), "sid"), plain, tolerance=1e-9)


@processes
def test_the_gradient_is_that_of_what_is_kept(process: Process):
    check_gradient(process)


SCORED = matching.scored
MUTANTS = {
    "nothing is forgotten": (Batch, "taught", property(lambda self: self.cond)),
    "the fake score is asked for what is kept": (
        matching,
        "scored",
        lambda call, scales, roles, batch, *told, **more: SCORED(
            call, scales, roles, replace(batch, cond=batch.taught), *told, **more
        ),
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_question_fails_its_check(name: str, monkeypatch: pytest.MonkeyPatch):
    Mutant([MUTANTS[name]], lambda: check_gradient(PROCESSES["flow"])).must_be_noticed(monkeypatch)


def test_the_law_is_of_the_kept_components():
    """On the bed: samples of the kept class alone are as near to it as two samples are, the teacher's own are not."""
    bed = bed_of(FORGETS, "flow")
    assert bed == Bed("flow", classes=True, instead=((0, 1),))
    data = bed.real.data
    kept, all_of_it = (
        data.sample(10_000, seeded(7), labels=torch.ones(10_000, dtype=torch.long)),
        data.sample(10_000, seeded(7)),
    )
    assert distance(kept, bed) < 0.03 < 0.3 < distance(all_of_it, bed)
    batch = batch_for(FORGETS, bed, 64, seeded(0), seeded(1))
    asked, taught = (cond.kwargs["class_labels"] for cond in (batch.cond, batch.taught))
    assert set(asked.tolist()) == {0, 1}
    assert set(taught.tolist()) == {1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"instead": {"0": "1", "1": "2"}}, "name something that is kept"),
        ({"instead": {"": "1"}}, "an empty text, which stands everywhere"),
        ({"gan": GAN()}, "bring in real samples"),
        ({"stabilisers": Stabilisers(real=0.1)}, "bring in real samples"),
        ({"stabilisers": Stabilisers(segments=Segments(weight=1.0))}, "hold the student to the teacher's trajectory"),
    ],
)
def test_what_would_bring_it_back_is_refused(settings: dict[str, object], words: str):
    with pytest.raises(ValueError, match=words):
        ScoreForgetting(**{"instead": {"0": "1"}, **settings})
