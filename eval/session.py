"""What every row of one evaluation shares: models, metrics, what is asked for, and the processes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from fastgen.errors import UserError

from .collect import Collector, Seen, collect
from .columns import Eyes
from .comparison import Metric
from .images.decode import Reading
from .images.sources import FileSource, RealSource, Request, Source
from .metrics import chosen
from .networks.clip import Clip, Reward
from .networks.extractors import FeatureExtractor
from .networks.lpips import Lpips
from .networks.protocols import PROTOCOLS, Protocol, build_extractor, min_images, precision_of
from .networks.weights import alexnet_file, model_folder
from .options import Options
from .processes import Processes


@dataclass(frozen=True, eq=False)
class Session:
    """One evaluation on one process.

    Attributes:
        identity: protocol and extractor in words; figures are comparable exactly where it is equal.
    """

    options: Options
    processes: Processes
    extractor: FeatureExtractor
    eyes: Eyes
    metrics: tuple[Metric, ...]
    request: Request
    identity: str

    @property
    def device(self) -> torch.device:
        return self.extractor.device

    @property
    def protocol(self) -> Protocol:
        return PROTOCOLS[self.options.protocol]

    def real(self) -> RealSource:
        """The real images, where they are no statistics."""
        if self.options.reference is not None:
            return FileSource(self.options.reference, self.reading())
        assert self.protocol.own is not None
        return self.protocol.own()

    def reading(self) -> Reading:
        """How image files are read; a fresh one, because it notes what it skips."""
        options = self.options
        return Reading(options.batch_size, self.extractor.resizes, options.skip_bad, options.workers)

    def see(self, source: Source, total: int, title: str, eyes: Eyes | None = None) -> Seen | None:
        """Looks at this process's share of a source: all shares together on the first one, None on the others.

        Args:
            total: images of all shares.
            eyes: None are those of the session.
        """
        share, options = self.processes.share(total), self.options
        wanted = frozenset(column for metric in self.metrics for column in metric.columns)
        collector = Collector(
            eyes or self.eyes,
            wanted,
            first=share.start,
            pictures=options.gallery,
            seed=options.seed,
            skip_flagged=options.skip_flagged,
        )
        seen = collect(source.batches(share), collector, total=len(share), title=title)
        parts = self.processes.gather(replace(seen, skipped=tuple(source.skipped)))
        return Seen.join(parts) if parts else None

    def refuse_small(self, num: int) -> None:
        """Raises UserError for fewer images than the protocol accepts, unless --allow-small."""
        least = min_images(self.options, self.extractor.dim)
        if num < least and not self.options.allow_small:
            raise UserError(
                f"{num:,} images are too few for the protocol {self.options.protocol}, which takes {least:,} or more: "
                f"with fewer than the {self.extractor.dim:,} feature dimensions a covariance is rank deficient, and a "
                "Frechet distance has a bias of about 1 / N. Give more images, or --allow-small for a rough figure "
                "that is compared at equal N only."
            )


def open_session(options: Options, rewards: Mapping[str, Reward], processes: Processes) -> Session:
    """Loads the models that look at images.

    Args:
        processes: that share the work.

    Raises:
        UserError: a model is missing or unusable, or there are too few images.
    """
    device = _device(processes.device(options.device))
    extractor = build_extractor(options, device)
    precision = precision_of(options)
    clip = Clip(model_folder(options.clip), device=device, precision=precision) if options.clip else None
    named = [text.partition("=") for text in options.rewards]
    judges = {name: Clip(model_folder(path), device=device, precision=precision) for name, _, path in named}
    lpips = Lpips(alexnet_file(options.lpips), device=device, precision=precision) if options.wants_lpips else None
    session = Session(
        options=options,
        processes=processes,
        extractor=extractor,
        eyes=Eyes(extractor, clip, {**{name: judge.reward for name, judge in judges.items()}, **rewards}, lpips),
        metrics=chosen(
            options.metrics,
            clip=clip is not None,
            lpips=lpips is not None,
            of=PROTOCOLS[options.protocol].metrics,
        ),
        request=Request.read(options.prompts, options.labels),
        identity=f"{options.protocol}: {extractor.identity}",
    )
    if options.generated or options.held_out:
        session.refuse_small(options.num)
    return session


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(
            f"there is no device {name!r} here ({' '.join(str(error).split())[:200]}); leave --device out, or give "
            "cpu, cuda or cuda:1"
        ) from error
    return device
