"""What an objective asks for: of the teacher and the data, and of the student that it trains."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from ...models.roles import DENOISERS
from ...models.state import STATES
from ...models.walk import Sampler

ProcessNeed = Literal["flow"]
BAKED = ("s", "w")
"""What a generator may be told beside its time: where its step leads, and its guidance. A stock pipeline knows both."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What an objective reads besides the roles that it trains, and what it asks of the student; joined by `|`.

    Args:
        real_score: the teacher.
        target: a copy of the generator that follows it, see `flow_map.follow`.
        coach: a student of few steps that stays as it is, which a stage before or `init` left.
        images: real samples.
        pairs: noises with the teacher's own samples of them.
        null: an unconditional mode, for guidance or dropped conditions.
        lpips: the perceptual distance of decoded samples.
        forgets: it forgets what its setting `instead` names, which may not be empty.
        instead: (what a row is asked for, what the teacher is asked in its place) for all that is to be forgotten.
        rewards: scores of decoded samples, see `fastgen.models.rewards`.
        jumps: a discriminator that reads where a jump began beside where it ended, see
            `fastgen.models.jump_discriminator`.
        pixels: a discriminator of decoded samples, see `fastgen.models.pixel_discriminator`.
        ratio_means, log_variance: states, see `fastgen.models.state`.
        scalars: role -> scalars that it is told and so has embeddings of, see `fastgen.models.scalars`.
        heads: fewest intervals that the generator has heads for in the place of its last linear layer, see
            `fastgen.models.head_bank`; 0 for the plain layer.
        sampler: the only one that a student of it can have.
        process: the only one that it holds on; others are retold.
        context: what is asked in the place of each prompt in a second conditioning of its rows, with the prompt
            at "{}"; "" for none.
        group: samples that are compared with each other, of one prompt where rewards are; a micro-batch has a whole
            number of groups.
        steps: fewest of a student that it can train.
        longest: least that the largest of a student's numbers of steps may be.
        one_step: it trains the first time of a grid only, so that a student of more steps cannot end with it.
        succeeds: its real score is the generator of a stage before, not the teacher.
        noise: sigma / alpha below which it trains nothing, so that no step of a student may start there.
        anchored: the first of several steps is trained by a loss of its own, so that one step is no student of it.
        follows: its fake score takes over a share of the generator's weights, and so is a network of the same form.
        experts: it trains the two networks of a pipeline phase by phase.
        fine_times: it tells the generator times that are closer than half precision can tell apart.
        second_derivative: it differentiates a gradient.
        head_derivative: it differentiates a gradient of the discriminator's heads alone.
        uneven: which networks it calls depends on the samples drawn, and so differs between processes.
        judged_from: images of the generator before the last of its terms begins.

    Raises:
        ValueError: a role, a scalar of the generator, a sampler or a process that does not exist, a value of another
            type, or steps below 1.
    """

    real_score: bool = False
    target: bool = False
    coach: bool = False
    images: bool = False
    pairs: bool = False
    null: bool = False
    lpips: bool = False
    forgets: bool = False
    instead: tuple[tuple[str, str], ...] = ()
    rewards: bool = False
    jumps: bool = False
    pixels: bool = False
    ratio_means: bool = False
    log_variance: bool = False
    scalars: Mapping[str, Set[str]] = field(default_factory=dict, hash=False)
    heads: int = 0
    sampler: Sampler | None = None
    process: ProcessNeed | None = None
    context: str = ""
    group: int = 1
    steps: int = 1
    longest: int = 1
    one_step: bool = False
    succeeds: bool = False
    noise: float = 0.0
    anchored: bool = False
    follows: bool = False
    experts: bool = False
    fine_times: bool = False
    second_derivative: bool = False
    head_derivative: bool = False
    uneven: bool = False
    judged_from: int = 0

    def __post_init__(self) -> None:
        for one in fields(self):
            value, usual = vars(self)[one.name], one.default
            if isinstance(usual, int) and type(value) is not type(usual):
                rule, remedy = ("True or False", True) if isinstance(usual, bool) else ("a whole number", 4)
                raise _mistyped(one.name, value, rule, remedy)
            if isinstance(usual, str) and not isinstance(value, str):
                raise _mistyped(one.name, value, "a text", "a drawing of {}")
            if usual is None and not isinstance(value, str | None):
                raise _mistyped(one.name, value, "a name or None", None)
        if not isinstance(self.scalars, Mapping) or not all(isinstance(some, Set) for some in self.scalars.values()):
            raise _mistyped("scalars", self.scalars, "a set of names for each role", {"generator": {"s"}})
        _check_known("roles", self.scalars, DENOISERS)
        _check_known("scalars of the generator", self.scalars.get("generator", ()), BAKED)
        _check_known("sampler", [self.sampler] if self.sampler else [], get_args(Sampler))
        _check_known("process", [self.process] if self.process else [], get_args(ProcessNeed))
        if self.steps < 1 or self.group < 1 or self.judged_from < 0 or self.heads < 0:
            found = f"steps={self.steps}, group={self.group}, judged_from={self.judged_from}, heads={self.heads}"
            raise ValueError(f"needs {found}: at least 1, 1, 0 and 0")

    def __or__(self, other: "Needs") -> "Needs":
        """The needs of both.

        Raises:
            ValueError: they ask for two samplers.
        """
        return Needs(**{name: _joined(name, value, vars(other)[name]) for name, value in vars(self).items()})

    def __str__(self) -> str:
        usual = vars(Needs())
        changed = {name: value for name, value in vars(self).items() if name != "scalars" and value != usual[name]}
        words = [name if value is True or name == "context" else f"{name}={value}" for name, value in changed.items()]
        words += [f"{role}.{name}" for role in self.scalars for name in self.scalars_of(role)]
        return ", ".join(sorted(words))

    @property
    def reads(self) -> tuple[str, ...]:
        """The denoisers that are asked without being trained."""
        return tuple(name for name in ("real_score", "target", "coach") if vars(self)[name])

    @property
    def pictures(self) -> bool:
        """Whether training encodes or decodes images."""
        return self.images or self.lpips or self.rewards or self.pixels

    @property
    def states(self) -> tuple[str, ...]:
        """The names of its state modules in `STATES`."""
        return tuple(name for name in STATES if vars(self)[name])

    def scalars_of(self, role: str) -> tuple[str, ...]:
        """The scalars that a role has to have embeddings of."""
        return tuple(sorted(self.scalars.get(role, ())))


def _joined(name: str, one: Any, other: Any) -> Any:
    if isinstance(one, int | float):
        return max(one, other)
    if isinstance(one, Mapping):
        return {role: one.get(role, frozenset()) | other.get(role, frozenset()) for role in {**one, **other}}
    if one and other and one != other:
        raise ValueError(f"needs {name}={one} and {name}={other}: an objective can have but one")
    return one or other


def _mistyped(name: str, value: Any, rule: str, remedy: Any) -> ValueError:
    return ValueError(f"needs {name}={value!r}: it has to be {rule}, write it as in Needs({name}={remedy!r})")


def _check_known(what: str, named: Iterable[str], known: tuple[str, ...]) -> None:
    unknown = sorted(set(named) - set(known))
    if unknown:
        raise ValueError(f"there is no {what} {', '.join(unknown)} to be needed: choose of {', '.join(known)}")
