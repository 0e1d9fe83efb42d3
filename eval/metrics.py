"""The table of metrics: what each needs, what it gives, and the paper that defined it."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .comparison import Comparison, Figures, Metric
from .measures import classes, colour, kernels, manifold, sliced, spectrum, uncertainty, variety
from .measures.figure import Figure, NotMeasured
from .metrics_json import About
from .rows import ClassRow, Row


def _fid(side: Comparison) -> Figures:
    value = side.target.distance(side.statistics)
    try:
        half, error = uncertainty.jackknife(side.column("features"), side.target, seed=side.seed)
    except NotMeasured:
        return {"fid": Figure(value)}
    details = {"standard_error": error, "groups": uncertainty.GROUPS, "seed": side.seed}
    return {"fid": Figure(value, max(0.0, value - half), value + half, details)}


def _fid_infinity(side: Comparison) -> Figures:
    return {"fid_infinity": uncertainty.frechet_infinity(side.column("features"), side.target, seed=side.seed)}


def _kid(side: Comparison) -> Figures:
    real = side.real_column("features")
    return {"kid": kernels.kernel_inception_distance(side.column("features"), real, seed=side.seed)}


def _prdc(side: Comparison) -> Figures:
    return manifold.prdc(side.column("features"), side.real_column("features"), seed=side.seed)


def _inception_score(side: Comparison) -> Figures:
    return {"inception_score": classes.inception_score(side.column("logits"), seed=side.seed)}


def _accuracy(side: Comparison) -> Figures:
    return {"accuracy": classes.accuracy(side.column("logits"), side.column("labels").cpu(), side.classes)}


def _diversity(side: Comparison) -> Figures:
    own = variety.mean_pairwise_distance(side.column("features"), side.column("conditions").cpu())
    if "diversity" not in side.teacher:
        return {"diversity": own}
    return {"diversity": own, "diversity_ratio": _over(own, side.teacher["diversity"].value)}


def _lpips(side: Comparison) -> Figures:
    own = variety.mean_pairwise_square(side.column("lpips"), side.column("conditions").cpu())
    if "lpips" not in side.teacher:
        return {"lpips": own}
    return {"lpips": own, "lpips_ratio": _over(own, side.teacher["lpips"].value)}


def _vendi(side: Comparison) -> Figures:
    return {"vendi": variety.vendi_score(side.column("features"))}


def _colour(side: Comparison) -> Figures:
    return colour.colour_ratios(side.column("colour"), side.real_column("colour"))


def _spectrum(side: Comparison) -> Figures:
    mine = side.seen.spectrum
    theirs = None if side.real is None else side.real.spectrum
    if mine is None or theirs is None:
        raise NotMeasured(f"both need images of one size, with at least {spectrum.MIN_SIDE} pixels per side")
    level, base = mine.spectrum(), theirs.spectrum()
    if level.power.shape != base.power.shape:
        raise NotMeasured("the real images have another size")
    bands = spectrum.spectrum_db(level, base)
    widest = max(bands, key=lambda band: abs(band.db))
    return {
        "spectrum_gap": Figure(abs(widest.db), details={"band": widest.label}),
        "nyquist_peak": Figure(spectrum.nyquist_peak(level, base)),
    }


def _swd(side: Comparison) -> Figures:
    mine, theirs = side.seen.patches, side.real.patches if side.real else []
    if not mine or len(mine) != len(theirs):
        raise NotMeasured("both sides need images of one size, the same on either")
    mine, theirs = ([level.to(side.device) for level in levels] for levels in (mine, theirs))
    return {"swd": sliced.patch_distance(mine, theirs, seed=side.seed)}


def _cmmd(side: Comparison) -> Figures:
    return {"cmmd": kernels.cmmd(side.column("embedding"), side.real_column("embedding"))}


def _clip_score(side: Comparison) -> Figures:
    return {"clip_score": _mean(100 * side.column("alignment"), floor=0.0)}


def _rewards(side: Comparison) -> Figures:
    columns = side.seen.columns
    return {name: _mean(rows) for name, rows in columns.items() if name.startswith("reward_")}


def _mean(values: Tensor, *, floor: float = -torch.inf) -> Figure:
    mean = max(float(values.double().mean()), floor)
    if len(values) < 2:
        return Figure(mean)
    error = 1.96 * float(values.double().std()) / len(values) ** 0.5
    return Figure(mean, mean - error, mean + error)


def _over(figure: Figure, unit: float) -> Figure | NotMeasured:
    if unit == 0:
        return NotMeasured("the teacher's own is 0: its images of one prompt or class are all alike")
    low, high = (None if end is None else end / unit for end in (figure.low, figure.high))
    return replace(figure, value=figure.value / unit, low=low, high=high)


_STANDARD = "1.96 standard errors"
_JACKKNIFE = "95 %, delete-a-group jackknife over the samples"

METRICS: tuple[Metric, ...] = (
    Metric(
        "fid",
        {"fid": About("FID", "lower", paper="Heusel et al. 2017, 1706.08500", interval=_JACKKNIFE)},
        ("features",),
        _fid,
    ),
    Metric(
        "fid_infinity",
        {"fid_infinity": About("FID inf", "lower", paper="Chong and Forsyth 2020, 1911.07023")},
        ("features",),
        _fid_infinity,
        default=False,
    ),
    Metric("kid", {"kid": About("KID", "lower", paper="Binkowski et al. 2018, 1801.01401")}, ("features",), _kid),
    Metric(
        "prdc",
        {
            "precision": About("precision", "higher", paper="Kynkaanniemi et al. 2019, 1904.06991"),
            "recall": About("recall", "higher", paper="Kynkaanniemi et al. 2019, 1904.06991"),
            "density": About("density", "higher", paper="Naeem et al. 2020, 2002.09797"),
            "coverage": About("coverage", "higher", paper="Naeem et al. 2020, 2002.09797"),
        },
        ("features",),
        _prdc,
    ),
    Metric(
        "inception_score",
        {"inception_score": About("IS", "higher", paper="Salimans et al. 2016, 1606.03498", interval=_STANDARD)},
        ("logits",),
        _inception_score,
        against_real=False,
        default=False,
    ),
    Metric(
        "accuracy",
        {"accuracy": About("accuracy", "higher", interval="95 %, Wilson")},
        ("logits", "labels"),
        _accuracy,
        against_real=False,
    ),
    Metric(
        "diversity",
        {
            "diversity": About("diversity", "higher", interval=_STANDARD),
            "diversity_ratio": About("div/teacher", "one", interval=_STANDARD),
        },
        ("features", "conditions", "labels"),
        _diversity,
        against_real=False,
    ),
    Metric(
        "lpips",
        {
            "lpips": About("LPIPS", "higher", paper="Zhang et al. 2018, 1801.03924", interval=_STANDARD),
            "lpips_ratio": About("LPIPS/teacher", "one", interval=_STANDARD),
        },
        ("lpips", "conditions"),
        _lpips,
        against_real=False,
    ),
    Metric(
        "vendi",
        {"vendi": About("Vendi", "higher", paper="Friedman and Dieng 2023, 2210.02410")},
        ("features",),
        _vendi,
        against_real=False,
        default=False,
    ),
    Metric(
        "colour",
        {
            "saturation_ratio": About("saturation", "one", interval=_STANDARD),
            "contrast_ratio": About("contrast", "one", paper="Peli 1990", interval=_STANDARD),
        },
        ("colour",),
        _colour,
    ),
    Metric(
        "spectrum",
        {"spectrum_gap": About("band gap", "zero", "dB"), "nyquist_peak": About("nyquist", "zero", "dB")},
        ("spectrum",),
        _spectrum,
    ),
    Metric("swd", {"swd": About("SWD", "lower", paper="Karras et al. 2018, 1710.10196")}, ("patches",), _swd),
    Metric("cmmd", {"cmmd": About("CMMD", "lower", paper="Jayasumana et al. 2024, 2401.09603")}, ("clip",), _cmmd),
    Metric(
        "clip_score",
        {"clip_score": About("CLIP", "higher", paper="Hessel et al. 2021, 2104.08718", interval=_STANDARD)},
        ("clip", "conditions"),
        _clip_score,
        against_real=False,
    ),
    Metric("rewards", {}, ("rewards",), _rewards, against_real=False),
)


def by_class(side: Comparison) -> tuple[ClassRow, ...]:
    """The images of a row by the class that was asked for.

    Raises:
        NotMeasured: it is not known which that was.
    """
    logits = side.seen.columns.get("logits")
    features = side.column("features") if "features" in side.seen.columns else None
    return classes.per_class(side.column("labels").cpu(), features, logits, side.classes)


def chosen(
    names: Sequence[str] | None, *, clip: bool, lpips: bool = False, of: Sequence[Metric] = METRICS
) -> tuple[Metric, ...]:
    """The metrics of these names (or of figures that they give), in the table's order; None: the default ones.

    Args:
        clip, lpips: whether there is such a model, without which its metrics are no default.
        of: the table.
    """
    if names is None:
        absent = {name for name, there in (("clip", clip), ("lpips", lpips)) if not there}
        return tuple(metric for metric in of if metric.default and absent.isdisjoint(metric.columns))
    return tuple(metric for metric in of if {metric.name, *metric.figures} & set(names))


def catalogue(rows: Iterable[Row], of: Sequence[Metric] = METRICS) -> dict[str, About]:
    """What the figures of these rows are, in the order of the table; others, such as rewards, behind them."""
    known = {name: entry for metric in of for name, entry in metric.figures.items()}
    there = dict.fromkeys(name for row in rows for name in row.metrics)
    ordered = [*(name for name in known if name in there), *(name for name in there if name not in known)]
    return {name: known.get(name) or _reward(name) for name in ordered}


def _reward(name: str) -> About:
    return About(name.removeprefix("reward_"), "higher", interval=_STANDARD)
