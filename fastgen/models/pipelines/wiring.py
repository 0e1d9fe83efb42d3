"""Where each element of a sample stands among the latents that the autoencoder decodes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import UserError


@dataclass(frozen=True)
class Wiring:
    """How the elements of one sample become those of its latents: z = scale * x[source] + shift, exactly invertible.

    Args:
        latents: shape of what the autoencoder decodes for one sample, [k, C, ...]: k frames of a video whose
            autoencoder is one of images, else 1.
        source: [N] int64, a permutation of a sample's flattened elements.
        scale, shift: [N] in float32, the scale nowhere zero.
    """

    latents: torch.Size
    source: Tensor
    scale: Tensor
    shift: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What tells it from others of its shape."""
        return {"source": self.source, "scale": self.scale, "shift": self.shift}

    def to_latents(self, x: Tensor) -> Tensor:
        """Samples [B, ...] to latents [B k, C, ...] in float32."""
        source, scale, shift = self._beside(x)
        z = x.flatten(1).float()[:, source] * scale + shift
        return z.reshape(-1, *self.latents[1:])

    def to_samples(self, z: Tensor, shape: torch.Size) -> Tensor:
        """Latents [B k, C, ...] to samples [B, *shape] in float32.

        Raises:
            UserError: the latents are of another size than the pipeline was asked for.
        """
        if z.shape[1:] != self.latents[1:] or len(z) % self.latents[0]:
            raise UserError(
                f"the images or videos have latents of {list(z.shape[1:])}, the teacher's samples of "
                f"{list(self.latents[1:])}: bring the data to the size (and frames) that the teacher samples"
            )
        source, scale, shift = self._beside(z)
        flat = (z.float().reshape(-1, len(source)) - shift) / scale
        return torch.empty_like(flat).index_copy_(1, source, flat).reshape(-1, *shape)

    def _beside(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Source, scale and shift on the device of the values: the meta device where costs are counted."""
        return self.source.to(values.device), self.scale.to(values.device), self.shift.to(values.device)
