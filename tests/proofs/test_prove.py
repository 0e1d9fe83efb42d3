"""`fastgen prove`: right objectives pass, wrong ones fail at the line that says why."""

from itertools import groupby
from pathlib import Path
from textwrap import dedent

import pytest

from fastgen.cli import main, prove
from fastgen.objectives import OBJECTIVES
from fastgen.objectives.parts.gan import GAN
from fastgen.proofs.bed import PROCESSES, seeded
from fastgen.proofs.gaussians import applies, gaussian_checks
from fastgen.proofs.prove import unguided
from fastgen.proofs.routing import routing_checks

PAGE = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
OWN = dedent(PAGE.partition("```python\n")[2].partition("   ```\n")[0])

WHOLE = """\
from dataclasses import dataclass

from fastgen.models.calls import look
from fastgen.objectives import AnyGuidance, Batch, Fixed, Landing, Needs, Roles, RolloutName, ScoreMatching, Terms
from fastgen.objectives.parts.matching import compare
from fastgen.objectives.parts.ops import surrogate


@dataclass(frozen=True)
class Mine(ScoreMatching):
    ratio: int = 2
    guidance: AnyGuidance = Fixed(3.0)
    rollout: RolloutName = "one_step"

    def matched(self, roles: Roles, batch: Batch, landing: Landing) -> Terms:
        scores = compare(look, self, roles, batch, landing)
        return {"mine": surrogate(landing.x0, scores.fake.x0 - scores.real.x0)}
"""
"""The same with its generator's turn in full."""


def saying(source: str, line: str) -> str:
    """The objective with a further line in its class."""
    return source.replace("    def ", f"    {line}\n\n    def ", 1)


@pytest.fixture
def verified(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """(source, options) -> exit code and what was printed."""

    def run(source: str, *options: str) -> tuple[int, str]:
        file = tmp_path / "mine.py"
        file.write_text(source)
        code = main(["prove", str(file), "--process", "flow", *options])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def failures(report: str) -> list[str]:
    return [line.removeprefix("FAILED ").split(": ")[0:2] for line in report.splitlines() if line.startswith("FAILED")]


def test_the_command_offers_every_process():
    assert tuple(PROCESSES) == prove.PROCESSES


def test_one_of_several_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "two.py").write_text(OWN + OWN.replace("class Mine", "class Other"))
    assert main(["prove", f"{tmp_path / 'two.py'}:Other", "--quick", "--process", "flow"]) == 0
    assert capsys.readouterr().out.startswith("Other(guidance=Fixed(scale=1.0))\n"), "and what is not its default"


@pytest.mark.usefixtures("unchecked")
def test_a_right_objective_passes(verified):
    code, report = verified(OWN)
    assert code == 0, report
    assert report.startswith("Mine(guidance=Fixed(scale=1.0))\n"), "guidance is turned to 1"
    for line in ("gaussians/flow: rests", "routing: turn generator", "routing: turn fake_score", "convergence/flow"):
        assert f"ok     {line}" in report
    assert report.endswith("all hold\n")


WRONG = {
    "flipped sign": (
        ("scores.fake.x0 - scores.real.x0", "scores.real.x0 - scores.fake.x0"),
        [["gaussians/flow", "a step downhill nears the data"]],
    ),
    "detached generator": (
        ("surrogate(landing.x0,", "surrogate(landing.x0.detach(),"),
        [["gaussians/flow", "reaches the generator"], ["routing", "turn generator"]],
    ),
    "a moved fixed point": (
        ("scores.fake.x0 - scores.real.x0", "scores.fake.x0 - scores.real.x0 + 0.05"),
        [["gaussians/flow", "rests where fake = real"]],
    ),
    "an undeclared teacher": (
        ("    def matched", "    needs = Needs()\n\n    def matched"),
        [["routing", "reads what it declares"]],
    ),
    "not finite": (("scores.fake.x0 - scores.real.x0", "scores.fake.x0 / 0"), [["routing", "turn generator"]]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_objective_fails_at_the_right_line(name: str, verified):
    (right, wrong), expected = WRONG[name]
    assert right in WHOLE
    code, report = verified(WHOLE.replace(right, wrong), "--quick")
    assert code == 1
    for line in expected:
        assert line in failures(report), report


def test_a_gradient_into_the_fake_score_is_a_leak(verified):
    leaking = WHOLE.replace("compare(look,", "compare(through,").replace("import look\n", "import look, through\n")
    leaking = leaking.replace(
        "        scores = compare(", '        roles["fake_score"].requires_grad_(True)\n        scores = compare('
    )
    leaking = leaking.replace("surrogate(landing.x0, ", "(landing.x0 * (").replace(".real.x0)}", ".real.x0)).mean()}")
    code, report = verified(leaking, "--quick")
    assert code == 1
    assert "routing: turn generator: gradients leak into fake_score" in report


def test_a_gan_that_starts_late_is_proved_from_the_start():
    late = unguided(OBJECTIVES["dmd2"](gan=GAN(start=1000, r1=1.0)))
    assert late.gan == GAN(start=0, r1=1.0)
    assert all(check.holds for check in routing_checks(late, "flow", steps=1))


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_a_flipped_sign_does_not_converge(verified):
    code, report = verified(OWN.replace("scores.fake.x0 - scores.real.x0", "scores.real.x0 - scores.fake.x0"))
    assert code == 1
    assert failures(report)[-1][0] == "convergence/flow"


def test_a_matching_objective_needs_its_fake_turn(verified):
    code, report = verified(saying(OWN, 'cycle = (("generator",),)'), "--quick")
    assert code == 1
    assert 'it reads fake_score, which no turn trains: add ("fake_score",) to its cycle' in report


def test_an_objective_that_raises_fails_with_the_place(verified):
    code, report = verified(WHOLE.replace('{"mine": surrogate', '{"mine": batch.x0.sum() + surrogate'), "--quick")
    assert code == 1
    assert "set images=True in the objective's `needs`" in report


MISTAKES = {
    "nothing there": ("x = 1", "defines no objective: write a frozen dataclass"),
    "two": (OWN + OWN.replace("class Mine", "class Other"), "defines several objectives (Mine, Other)"),
    "not Python": ("def", "cannot be run: SyntaxError"),
    "no default": (OWN.replace("guidance: AnyGuidance = Fixed(3.0)", "guidance: AnyGuidance"), "defines no objective"),
    "a role the bed lacks": (
        saying(WHOLE, "also = Needs(lpips=True)"),
        "needs lpips, which the proof",
    ),
    "no generator turn": (
        saying(OWN, 'cycle = (("fake_score",),)'),
        "never trains the generator",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_with_its_remedy(name: str, verified):
    source, message = MISTAKES[name]
    code, report = verified(source, "--quick")
    assert code == 2
    assert message in report


@pytest.mark.parametrize(
    ("target", "hint"),
    [("dmd3", "did you mean dmd"), ("gone.py", "gone.py; its path is relative to the working directory")],
)
def test_an_unknown_name_is_told_the_nearest(target: str, hint: str, capsys: pytest.CaptureFixture[str]):
    assert main(["prove", target]) == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_packages_own_objectives_hold(name: str):
    objective = unguided(OBJECTIVES[name]())
    checks = routing_checks(objective, "flow", steps=objective.needs.steps)
    checks += gaussian_checks(objective, "flow") if applies(objective) else []
    assert all(check.holds for check in checks), [str(check) for check in checks if not check.holds]


@pytest.mark.parametrize("name", ["vsd", "sid_lsg", "sid_few_step", "dmd2", "swiftbrush"])
def test_guidance_is_turned_to_one_in_every_law(name: str):
    scales = unguided(OBJECTIVES[name]()).guidance.drawn(seeded(0))
    assert (scales.real, scales.fake, scales.learned) == (1.0, 1.0, 1.0)


def test_an_objective_without_guidance_stays_as_it_is():
    assert unguided(OBJECTIVES["kd"]()) == OBJECTIVES["kd"]()


OBJECTIVES_PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_page_says_what_an_objective_needs_and_trains(name: str):
    objective = OBJECTIVES[name]()
    runs = [(turn, len(list(same))) for turn, same in groupby(objective.cycle)]
    turns = ", ".join(f"{count} x " * (count > 1) + " + ".join(turn) for turn, count in runs)
    row = next(
        (line for line in OBJECTIVES_PAGE.read_text().splitlines() if line.startswith(f"| `{name}` | ")), "no row"
    )
    assert row.endswith(f" | {objective.needs} | {turns} |")
