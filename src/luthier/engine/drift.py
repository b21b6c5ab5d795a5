"""How far training has moved a model on rows that it was not trained on: the forgetting meter.

Over the N trained tokens of general rows (what an answer says), with p the tuned model and q its base, each given all that stands before:

kl                  1/N sum_t sum_v p(v) (log p(v) - log q(v)), in nats: KL(tuned || base), 0 where nothing has changed
general_loss        1/N sum_t -log p(token t)
base_general_loss   1/N sum_t -log q(token t)

Beside an adapter q is the same model with the adapter off, and the KL is exact. Where every weight is trained q is kept from before the
training: the LIKELIEST words of each token, and all others as one. Of words that are put together KL is at most what it is of all of them
(the log sum inequality), so that what is then measured is a lower bound.

Letters: N trained tokens, V vocabulary, K likeliest words.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.engine import update
from luthier.engine.engine import Engine
from luthier.records import TokenizedExample

LIKELIEST = 64
# Tokens whose logits over the whole vocabulary exist at once.
CHUNK_TOKENS = 128

Drift = dict[str, float]
# The logits of some of an example's trained tokens, (n, V) in fp32.
Logits = Callable[[slice], Tensor]


@dataclass(frozen=True, slots=True)
class Base:
    """What a model made of general rows before it was trained: a row for each of N trained tokens."""

    words_NK: Tensor  # int32
    logps_NK: Tensor  # of these words, in nats
    logps_N: Tensor  # of the right word


def from_adapter(engine: Engine, examples: Sequence[TokenizedExample]) -> Drift:
    """The drift of a model whose adapter can be switched off."""

    def compare(batch: list[TokenizedExample]) -> Tensor:
        sums = torch.zeros(3, dtype=torch.float64)
        for group in _groups(engine, batch):
            tuned = list(_outputs(engine, group))
            with engine.model.disable_adapter():
                base = list(_outputs(engine, group))
            for (logits, targets_N), (base_logits, _) in zip(tuned, base, strict=True):
                for piece in _pieces(len(targets_N)):
                    sums += _sums(torch.log_softmax(logits(piece), -1), torch.log_softmax(base_logits(piece), -1), targets_N[piece])
        return sums

    return _mean(torch.stack(engine.in_batches(compare, examples)).sum(0), examples)


def _sums(logps_NV: Tensor, base_NV: Tensor, targets_N: Tensor) -> Tensor:
    kl = (logps_NV.exp() * (logps_NV - base_NV)).sum()
    losses = (-one.gather(1, targets_N[:, None]).cpu().double().sum() for one in (logps_NV, base_NV))
    return torch.stack([kl.cpu().double(), *losses])


def base_of(engine: Engine, examples: Sequence[TokenizedExample]) -> Base:
    """What the model makes of `examples` as it is, to be kept."""

    def keep(batch: list[TokenizedExample]) -> list[tuple[Tensor, Tensor, Tensor]]:
        return [_kept(logits(piece), targets_N[piece]) for logits, targets_N, piece in _all_pieces(engine, batch)]

    kept = [part for parts in engine.in_batches(keep, examples) for part in parts]
    words_NK, logps_NK, logps_N = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return Base(words_NK, logps_NK, logps_N)


def _kept(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    logps_NV = torch.log_softmax(logits_NV, -1)
    likeliest = logps_NV.topk(min(LIKELIEST, logps_NV.shape[1] - 1), -1)
    return likeliest.indices.int().cpu(), likeliest.values.cpu(), logps_NV.gather(1, targets_N[:, None]).squeeze(1).cpu()


def from_base(engine: Engine, examples: Sequence[TokenizedExample], base: Base) -> Drift:
    """The drift of a model from what was kept of the same `examples`."""
    done = 0

    def compare(batch: list[TokenizedExample]) -> Tensor:
        sums, place = torch.zeros(3, dtype=torch.float64), done
        for logits, targets_N, piece in _all_pieces(engine, batch):
            logps_NV, rows = torch.log_softmax(logits(piece), -1), slice(place, place := place + piece.stop - piece.start)
            logps_NK = logps_NV.gather(1, base.words_NK[rows].long().to(logps_NV.device)).cpu().double()
            right_N = logps_NV.gather(1, targets_N[piece, None]).cpu().double()
            kl = _coarse_kl(logps_NK, base.logps_NK[rows].double())
            sums += torch.stack([kl, -right_N.sum(), -base.logps_N[rows].double().sum()])
        return sums

    def compare_next(batch: list[TokenizedExample]) -> Tensor:
        nonlocal done
        found = compare(batch)  # a batch that did not fit is compared again, from where it began
        done += sum(example.trained_tokens for example in batch)
        return found

    return _mean(torch.stack(engine.in_batches(compare_next, examples)).sum(0), examples)


def _coarse_kl(logps_NK: Tensor, base_NK: Tensor) -> Tensor:
    """KL of the K words and of all others together."""
    rest_N, base_rest_N = ((1 - one.exp().sum(-1)).clamp_min(1e-12) for one in (logps_NK, base_NK))
    return (logps_NK.exp() * (logps_NK - base_NK)).sum() + (rest_N * (rest_N.log() - base_rest_N.log())).sum()


def _mean(sums: Tensor, examples: Sequence[TokenizedExample]) -> Drift:
    kl, loss, base_loss = (sums / sum(sum(example.trained[1:]) for example in examples)).tolist()
    # Rounding may push what has not changed below zero.
    return {"kl": max(0.0, kl), "general_loss": loss, "base_general_loss": base_loss}


def _all_pieces(engine: Engine, batch: list[TokenizedExample]) -> Iterator[tuple[Logits, Tensor, slice]]:
    for group in _groups(engine, batch):
        for logits, targets_N in _outputs(engine, group):
            yield from ((logits, targets_N, piece) for piece in _pieces(len(targets_N)))


def _groups(engine: Engine, batch: list[TokenizedExample]) -> list[list[TokenizedExample]]:
    """What runs together: on the plain path a row by itself, whose logits are all there at once."""
    return [[example] for example in batch] if engine.plain_reason else [batch]


def _pieces(tokens: int) -> Iterator[slice]:
    return (slice(start, min(start + CHUNK_TOKENS, tokens)) for start in range(0, tokens, CHUNK_TOKENS))


def _outputs(engine: Engine, group: list[TokenizedExample]) -> Iterator[tuple[Logits, Tensor]]:
    """How each example's trained tokens are predicted, and which these are, (n,)."""
    if engine.plain_reason:
        yield from (_plain(engine, example) for example in group)
        return
    step = engine.lay_out(group, None)
    _, pool = update.run_prefixes(engine.model, step)
    found: dict[int, tuple[Logits, Tensor]] = {}
    for documents in step.micro_batches:
        hidden_ND, targets_N = update.trained_rows(engine.model, documents, pool)
        weight_VD = engine.head.weight.to(hidden_ND.dtype)
        counts = [len(one.targets) for one in documents]
        for one, hidden, targets in zip(documents, hidden_ND.split(counts), targets_N.split(counts), strict=True):
            found[one.place] = _logits(engine, hidden, weight_VD), targets
    yield from (found[place] for place in range(len(group)))


def _logits(engine: Engine, hidden_ND: Tensor, weight_VD: Tensor) -> Logits:
    return lambda piece: engine.head.logits(hidden_ND[piece], weight_VD).float()


def _plain(engine: Engine, example: TokenizedExample) -> tuple[Logits, Tensor]:
    token_ids = torch.tensor([example.token_ids], device=engine.device)
    # Before them stand those of virtual embeddings, where PEFT puts some.
    logits_TV = engine.model(input_ids=token_ids, use_cache=False).logits[0, -len(example.token_ids) :]
    predicted = torch.tensor(example.trained[1:], device=engine.device).nonzero().squeeze(1)
    return (lambda piece: logits_TV[predicted[piece]].float()), token_ids[0, predicted + 1]
