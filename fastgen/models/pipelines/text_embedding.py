"""Prompts as vectors, by a pipeline's own text encoder: what tells kinds of prompts apart."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import UserError
from .stock_pipeline import StockPipeline

AT_ONCE = 64
MOST_TOKENS = 512  # of a tokenizer that has no limit of its own


@torch.no_grad()
def text_embeddings(pipe: StockPipeline, prompts: Sequence[str]) -> Tensor:
    """The mean over a prompt's tokens of what the first text encoder's last layer says, of length 1.

    Prompts of as many tokens are encoded together, so that nothing is padded and none depends on the others. An empty
    prompt of which a tokenizer makes no token is the one that it pads with.

    Returns:
        float32 [n, d] on the CPU.

    Raises:
        UserError: the pipeline has no text encoder.
    """
    tokenizer, encoder = (pipe.components.get(name) for name in ("tokenizer", "text_encoder"))
    if tokenizer is None or encoder is None:
        raise UserError(
            f"prompts are told apart by a pipeline's `tokenizer` and `text_encoder`, and {type(pipe).__name__} lacks "
            "one of them: give one student all prompts"
        )
    most = min(tokenizer.model_max_length, MOST_TOKENS)
    read = [tokenizer(prompt, truncation=True, max_length=most).input_ids for prompt in prompts]
    tokens: list[list[int]] = [ids or [tokenizer.pad_token_id] for ids in read]
    found: list[Tensor] = [torch.empty(0)] * len(tokens)
    for _, alike in groupby(sorted(range(len(tokens)), key=lambda i: len(tokens[i])), key=lambda i: len(tokens[i])):
        numbers = list(alike)
        for start in range(0, len(numbers), AT_ONCE):
            part = numbers[start : start + AT_ONCE]
            for number, vector in zip(part, _encoded(encoder, [tokens[i] for i in part]), strict=True):
                found[number] = vector
    return torch.stack(found)


def _encoded(encoder: Any, tokens: Sequence[Sequence[int]]) -> Tensor:
    ids = torch.tensor(tokens, device=encoder.device)
    states = encoder(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    return F.normalize(states.float().mean(dim=1), dim=-1).cpu()
