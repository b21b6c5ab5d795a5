"""The only decoder: greedy answers to many prompts, what they share decoded once, in batches sorted by length."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from luthier.engine.attention import Decoding, KeysValues, Packed
from luthier.engine.update import decoder, device_of, head_weight, run_packed
from luthier.plan.shape import common_prefix

BATCH_ROWS = 64
# A batch goes on with its unfinished rows only, once this share of its rows has ended.
COMPACT_SHARE = 0.25


@torch.no_grad()
def answer(
    model: Any, prompts: list[list[int]], *, stop_ids: set[int], max_new_tokens: int, on_answers: Callable[[int], None] = lambda answers: None
) -> list[list[int]]:
    """The greedy continuation of each prompt, without the stop token. `on_answers(n)` is told how many are done.

    The same prompts in the same order give the same answers on one machine; order and batch may turn the last bit of bf16.
    """
    shared = max(0, min(common_prefix(prompts), min(map(len, prompts)) - 1)) if len(prompts) > 1 else 0
    prefix = _prefix(model, prompts[0][:shared]) if shared else {}
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        for index, tokens in zip(
            batch, _decode_batch(model, [prompts[index][shared:] for index in batch], prefix, shared, stop_ids, max_new_tokens), strict=True
        ):
            answers[index] = tokens
        on_answers(min(start + BATCH_ROWS, len(order)))
    return answers


@torch.no_grad()
def stream(model: Any, prompt: list[int], *, stop_ids: set[int], max_new_tokens: int) -> Iterator[int]:
    """The greedy continuation of one prompt, token by token, without the stop token."""
    head_VD = head_weight(model)
    state = Decoding(visible_BS=_visible([len(prompt)], max_new_tokens, device_of(model)), prefix={})
    next_B = _advance(model, head_VD, state, _left_padded([prompt], device_of(model)), 0)
    for _ in range(max_new_tokens - 1):
        token = int(next_B[0])
        if token in stop_ids:
            return
        yield token
        next_B = _advance(model, head_VD, state, next_B[:, None], 0)
    if int(next_B[0]) not in stop_ids:
        yield int(next_B[0])


def _prefix(model: Any, tokens: list[int]) -> dict[int, KeysValues]:
    layout = Packed(lengths=[len(tokens)], record=True)
    run_packed(model, [tokens], 0, layout)
    return layout.recorded


def _decode_batch(
    model: Any, prompts: list[list[int]], prefix: dict[int, KeysValues], shared: int, stop_ids: set[int], max_new_tokens: int
) -> list[list[int]]:
    device, head_VD = device_of(model), head_weight(model)
    state = Decoding(visible_BS=_visible([len(prompt) for prompt in prompts], max_new_tokens, device), prefix=prefix)
    next_B = _advance(model, head_VD, state, _left_padded(prompts, device), shared)
    answers: list[list[int]] = [[] for _ in prompts]
    alive = list(range(len(prompts)))  # which prompt each row of the batch answers
    ended: set[int] = set()
    for _ in range(max_new_tokens):
        for prompt, token in zip(alive, next_B.tolist(), strict=True):
            if prompt in ended:
                continue
            if token in stop_ids:
                ended.add(prompt)
            else:
                answers[prompt].append(token)
        going = [row for row, prompt in enumerate(alive) if prompt not in ended]
        if not going or max(len(tokens) for tokens in answers) >= max_new_tokens:
            break
        if len(going) <= (1 - COMPACT_SHARE) * len(alive):
            rows = torch.tensor(going, device=device)
            state.keep_rows(rows)
            next_B, alive = next_B[rows], [alive[row] for row in going]
        next_B = _advance(model, head_VD, state, next_B[:, None], shared)
    return answers


def _advance(model: Any, head_VD: Tensor, state: Decoding, tokens_BL: Tensor, first_position: int) -> Tensor:
    """Run the newest tokens of each row; the likeliest next token of each, (B,)."""
    end = state.cursor + tokens_BL.shape[1]
    positions = first_position + state.visible_BS[:, :end].cumsum(1)[:, state.cursor :] - 1
    output = decoder(model)(input_ids=tokens_BL, position_ids=positions.clamp(min=0), use_cache=False, luthier_layout=state)
    state.cursor = end
    hidden_BD = output.last_hidden_state[:, -1]
    logits_BV: Tensor = hidden_BD @ head_VD.to(hidden_BD.dtype).T
    return logits_BV.argmax(dim=-1)


def _visible(lengths: list[int], max_new_tokens: int, device: torch.device) -> Tensor:
    """True at every place of a row but its padding on the left: (B, longest + max_new_tokens)."""
    longest = max(lengths)
    places = torch.arange(longest + max_new_tokens, device=device)
    return places >= (longest - torch.tensor(lengths, device=device))[:, None]


def _left_padded(prompts: list[list[int]], device: torch.device) -> Tensor:
    longest = max(map(len, prompts))
    return torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
