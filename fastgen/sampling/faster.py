"""Sampling in less time or memory: compiled blocks, and denoisers whose layers are rounded to 8 or 4 bits."""

from dataclasses import dataclass
from importlib.util import find_spec

import torch

from ..errors import UserError
from ..models.pipelines.components import denoisers_of
from ..models.pipelines.stock_pipeline import StockPipeline
from ..models.quantised import Quantised, quantise
from ..models.regions import compile_regions, find_regions


@dataclass(frozen=True)
class Faster:
    """What is changed of a pipeline's denoisers before it samples.

    Args:
        compile: their blocks are compiled by PyTorch, at the first batch of each size.
        weights: what their linear layers are rounded to; sums stay in bf16.
    """

    compile: bool = False
    weights: Quantised | None = None

    def check(self, *, dtype: str, lora: bool) -> None:
        """Refuses, before anything is loaded, what could not be computed.

        Args:
            dtype: of all other weights.
            lora: whether the student is a LoRA on its base.

        Raises:
            UserError: naming the options and the remedy.
        """
        if self.weights is None:
            return
        if dtype != "bfloat16":
            raise UserError(f"--weights {self.weights} computes in bf16, and --dtype is {dtype}: add --dtype bfloat16")
        if lora:
            raise UserError(
                f"--weights {self.weights} rounds whole layers, and this student is a LoRA on its base: give the whole "
                "student, beside it"
            )
        if self.weights != "fp8" and find_spec("bitsandbytes") is None:
            raise UserError(
                f"--weights {self.weights} needs bitsandbytes: pip install 'fastgen[quantised]', or use fp8"
            )

    def prepare(self, pipe: StockPipeline, device: str) -> None:
        """Changes the denoisers of a pipeline in place, which is in bf16 where weights are rounded.

        Raises:
            UserError: nothing of a denoiser can be compiled.
        """
        for network in denoisers_of(pipe).values():
            if self.weights is not None:
                quantise(network, self.weights, torch.device(device))
            if self.compile:
                if not find_regions(network):
                    raise UserError(f"{type(network).__name__} has no stack of blocks to compile: leave out --compile")
                compile_regions(network)
