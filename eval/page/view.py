"""All that the page shows, worked out; the template only lays it out."""

from dataclasses import dataclass

from ..metrics_json import Report, Training
from ..watch.curves import Curves
from .gallery import Gallery
from .notes import warnings
from .pictures import LARGEST, Pictures
from .quality import Quality
from .sides import Sides
from .spectrum import PROMINENT_DB, Spectrum
from .tables import Classes, Headline, Latencies, Prompts


@dataclass(frozen=True)
class View:
    """A report in the order of its page.

    Attributes:
        gallery: None without pictures.
        training: curves of the run that left the student, None where it is not known.
        spectrum: None where it was not measured.
        largest: longer side in pixels from which pictures are reduced.
        prominent_db: what makes a peak.
    """

    report: Report
    sides: Sides
    warnings: tuple[str, ...]
    gallery: Gallery | None
    headline: Headline
    quality: Quality
    spectrum: Spectrum | None
    classes: Classes
    prompts: Prompts
    latencies: Latencies
    training: Curves | None
    largest: int = LARGEST
    prominent_db: float = PROMINENT_DB

    @property
    def first(self) -> str | None:
        """The figure that stands above all others."""
        return next(iter(self.report.figures), None)

    @classmethod
    def of(cls, report: Report, pictures: Pictures) -> "View":
        """Reads the pictures of a report.

        Raises:
            UserError: a picture lies outside the report's folder.
        """
        sides = Sides.of(report.rows)
        return cls(
            report=report,
            sides=sides,
            warnings=tuple(warnings(report)),
            gallery=None if report.gallery is None else Gallery.of(report.gallery, sides, pictures),
            headline=Headline.of(report.rows),
            quality=Quality.of(report),
            spectrum=Spectrum.of(sides),
            classes=Classes.of(sides),
            prompts=Prompts.of(sides),
            latencies=Latencies.of(report.rows),
            training=None if report.training is None else _curves(report.training),
        )


def _curves(training: Training) -> Curves:
    return Curves.drawn({one.name: one.points for one in training.series}, stages=training.stages)
