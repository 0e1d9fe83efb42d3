"""DMD2: improved distribution matching distillation (Yin et al. 2024, arXiv:2405.14867).

DMD without its regression: the fake score is updated several times per generator update (section 4.2), a GAN term on
the fake score's features brings in real data (section 4.3), and several steps are trained on the generator's own
intermediate samples (section 4.5).
"""

from dataclasses import dataclass, field

import torch

from ..models.conditioning import Conditioning
from ..models.roles import Roles
from ..process import AnyTimeLaw, Uniform
from .base import Batch, Terms, Turn, check_ratio
from .matching import compare, fake_denoising, matching_gradient
from .ops import RowName, discriminator_loss, generator_loss, renoised, surrogate
from .rollout import RolloutName, land, landed


@dataclass(frozen=True)
class DMD2:
    """Distribution matching with two time scales and a GAN term.

    Args:
        guidance: of the real score.
        gan: weight of the generator's GAN term; 0 trains without discriminator and without images.
        gan_fake: weight of the discriminator's loss beside the fake score's.
        times: where the two scores are compared.
        fake_times: where the fake score is trained.
        gan_times: where the discriminator looks.
        fake_space: row in which the fake score's errors are squared.
        ratio: fake updates per generator update.
        rollout: how samples are generated.
    """

    guidance: float = 1.0
    gan: float = 3e-3
    gan_fake: float = 1e-2
    times: AnyTimeLaw = field(default_factory=lambda: Uniform(0.02, 0.98))
    fake_times: AnyTimeLaw = field(default_factory=Uniform)
    gan_times: AnyTimeLaw = field(default_factory=Uniform)
    fake_space: RowName = "eps"
    ratio: int = 5
    rollout: RolloutName = "backward_simulation"

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    @property
    def cycle(self) -> tuple[Turn, ...]:
        turn = ("fake_score", "discriminator") if self.gan else ("fake_score",)
        return (("generator",), *self.ratio * (turn,))

    @property
    def needs(self) -> frozenset[str]:
        images = {"images"} if self.gan or self.rollout == "noised_data" else set()
        return frozenset({"real_score"} | images | ({"null"} if self.guidance != 1 else set()))

    def generator(self, roles: Roles, batch: Batch) -> Terms:
        x0 = land(self.rollout, roles, batch).x
        scores = compare(roles, batch, x0, law=self.times, guidance=self.guidance)
        terms = {"dm": surrogate(x0, matching_gradient(x0, scores))}
        if self.gan:
            noised = renoised(roles, batch, x0, law=self.gan_times)
            logits = roles.discriminator(noised.x_t, noised.t, batch.cond)
            terms["gan"] = self.gan * generator_loss(logits)
        return terms

    def fake_score(self, roles: Roles, batch: Batch) -> Terms:
        loss = fake_denoising(roles, batch, self.rollout, law=self.fake_times, space=self.fake_space)
        terms = {"denoise": loss}
        if self.gan:
            fake = renoised(roles, batch, landed(self.rollout, roles, batch).x, law=self.gan_times)
            real = renoised(roles, batch, batch.x0, law=self.gan_times)
            both = Conditioning.cat([batch.cond, batch.cond])
            logits = roles.discriminator(torch.cat([real.x_t, fake.x_t]), torch.cat([real.t, fake.t]), both)
            terms["gan"] = self.gan_fake * discriminator_loss(*logits.chunk(2))
        return terms
