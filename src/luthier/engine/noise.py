"""NEFTune (Jain 2023, arXiv:2310.05914): uniform noise on the embeddings of training rows, drawn from (update, example, place in the row)."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from luthier.engine.draws import Draws

# Stands where dropout's draws have the number of their module.
OF_NOISE = 2**32


def install(model: Any, alpha: float, draws: Draws) -> None:
    """Let the embedding of a causal language model add noise while it trains; an `alpha` of 0 adds none."""
    if alpha == 0.0:
        return

    def add(module: nn.Module, _: Any, embedded_BTD: Tensor) -> Tensor:
        if not module.training or embedded_BTD[..., 0].numel() != draws.tokens:
            return embedded_BTD  # a call from elsewhere, which knows no documents
        of_rows = zip(draws.documents, draws.row_tokens, strict=True)
        noise = [_noise(draws.seed, place, tokens, length, embedded_BTD, alpha) for (place, tokens), length in of_rows]
        return embedded_BTD + torch.cat(noise)[draws.run].view(embedded_BTD.shape)

    model.get_input_embeddings().register_forward_hook(add)


def _noise(seed: int, place: int, tokens: int, length: int, like: Tensor, alpha: float) -> Tensor:
    """(tokens, D): the beginning of the noise of a row of `length` tokens, whose numbers are at most alpha / sqrt(length * D)."""
    width = like.shape[-1]
    key = [seed, OF_NOISE, place]
    if like.device.type == "cpu":
        drawn = torch.from_numpy(np.random.Generator(np.random.SFC64(key)).random((length, width), dtype=np.float32))
    else:
        generator = torch.Generator(like.device).manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1))
        drawn = torch.rand(length, width, generator=generator, device=like.device)
    return ((2 * drawn[:tokens] - 1) * (alpha / math.sqrt(length * width))).to(like.dtype)
