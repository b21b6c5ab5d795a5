"""One update through the model: shared prefixes once, every micro-batch, then one backward pass through the prefixes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from luthier.engine import sequence, virtual
from luthier.engine.batches import Document, Step
from luthier.engine.draws import Draws
from luthier.engine.head import Head
from luthier.engine.lanes import Lanes
from luthier.engine.masters import Masters
from luthier.engine.packed import KeysValues, Packed, Pool
from luthier.engine.transfer import to_device


@dataclass(frozen=True, slots=True)
class Pass:
    """Prefix parts that ran together, with the graph that made their keys and values (T, K, D) of each layer."""

    parts: list[Document]
    recorded: dict[int, KeysValues]


@dataclass(frozen=True, slots=True)
class SideBySide:
    """Where micro-batches run side by side, and where the gradients of what is trained meet."""

    lanes: Lanes
    masters: Masters


# Sends a loss backward.
Backward = Callable[[Tensor], None]
# What one micro-batch adds to an update's loss.
Part = TypeVar("Part")


@dataclass(slots=True)
class Sums:
    """What an update gathers: the sum of all losses, and of each example's, in nats."""

    total: Tensor
    by_example: list[float] | None = None


def forward_backward(
    model: Any, head: Head, step: Step, sums: Sums | None = None, loss_scale: float = 1.0, drawn: Draws | None = None, side: SideBySide | None = None
) -> float:
    """Mean loss over the trained tokens of the update; gradients of that mean (times `loss_scale`) are added to the parameters.

    The prefixes' keys and values are leaves: every micro-batch adds to their gradient, in fp32, and one backward pass
    through the prefixes ends the update. Exact: the parameters do not change within an update. `drawn` is told which documents run.
    """
    sums = sums or Sums(torch.zeros((), dtype=torch.float32))
    run_update(model, head, step, sums, loss_scale, drawn or Draws(), side)
    return float(sums.total) / step.trained_tokens


def run_update(model: Any, head: Head, step: Step, sums: Sums, loss_scale: float, drawn: Draws, side: SideBySide | None = None) -> None:
    """What forward_backward does, but that the loss stays where it was made: on a GPU nothing waits for anything."""

    def learn(documents: list[Document], pool: Pool, backward: Backward) -> Tensor:
        total, each = micro_batch_losses(model, head, documents, pool)
        backward(total * (loss_scale / step.trained_tokens))
        _gather(sums, documents, each)
        return total.detach()

    for total in run_step(model, step, learn, drawn, side):
        sums.total = sums.total.to(total.device) + total


def run_step(
    model: Any, step: Step, learn: Callable[[list[Document], Pool, Backward], Part], drawn: Draws, side: SideBySide | None = None
) -> list[Part]:
    """The prefixes, then `learn` of each micro-batch, which goes backward as far as the prefixes' leaves; then the prefixes' backward pass.

    Gives what `learn` gave, in the order of the micro-batches.
    """
    drawn.begin_update()
    passes, pool = run_prefixes(model, step)

    def run(documents: list[Document], pool: Pool, backward: Backward) -> Part:
        documents = sequence.shared(documents)
        drawn.begin_micro_batch([(one.place, len(one.inputs)) for one in documents], [len(one.token_ids) for one in documents])
        return learn(documents, pool, backward)

    if side is None or step.lanes == 1:
        parts = [run(documents, pool, Tensor.backward) for documents in step.micro_batches]
    else:
        parts = _run_side_by_side(step.micro_batches, pool, run, side)
    for one in reversed(passes):
        _finish(one, pool)
    return parts


def _run_side_by_side(
    micro_batches: list[list[Document]], pool: Pool, run: Callable[[list[Document], Pool, Backward], Part], side: SideBySide
) -> list[Part]:
    parts: dict[int, Part] = {}
    pools = [_own_leaves(pool) for _ in range(side.lanes.count)]

    def work(place: int) -> None:
        leaves = [leaf for layers in pools[place].values() for pair in layers.values() for leaf in pair if leaf.requires_grad]
        for number in range(place, len(micro_batches), side.lanes.count):
            parts[number] = run(micro_batches[number], pools[place], lambda loss: side.masters.backward_in_lane(loss, leaves))

    side.lanes.run(work)
    side.masters.add_lanes()
    _add_leaves(pool, pools)
    return [parts[number] for number in range(len(micro_batches))]


@torch.no_grad()
def loss(model: Any, head: Head, step: Step, sums: Sums | None = None) -> float:
    """Sum of the losses over the trained tokens, without gradients."""
    sums = sums or Sums(torch.zeros((), dtype=torch.float32))
    _, pool = run_prefixes(model, step)
    for documents in step.micro_batches:
        total, each = micro_batch_losses(model, head, documents, pool)
        sums.total = sums.total.to(total.device) + total
        _gather(sums, documents, each)
    return float(sums.total)


def run_prefixes(model: Any, step: Step) -> tuple[list[Pass], Pool]:
    """Virtual tokens, then every part of a shared prefix once, parents before children; their keys and values as gradient leaves in fp32."""
    passes: list[Pass] = []
    pool: Pool = {}
    if virtual.tokens(model):
        passes.append(run_virtual(model))
        _put_leaves(passes[-1], pool)
    for parts in step.passes:
        layout = _layout(parts, pool, record=True)
        run_packed(model, parts, layout)
        passes.append(Pass(parts, layout.recorded))
        _put_leaves(passes[-1], pool)
    return passes, pool


def run_virtual(model: Any) -> Pass:
    """The virtual tokens that stand before every row: the one part that all others hang on."""
    count, device = virtual.tokens(model), device_of(model)
    root = Document([0] * count, virtual.ROOT)
    if virtual.is_prefix(model):
        return Pass([root], virtual.keys_values(model))
    layout = Packed([count], record=True)
    run(model, virtual.embeddings(model), torch.arange(count, device=device)[None], layout)
    return Pass([root], layout.recorded)


def _put_leaves(one: Pass, pool: Pool) -> None:
    start = 0
    for part in one.parts:
        piece = slice(start, start + len(part.inputs))
        pool[part.place] = {layer: _leaves(pair, piece) for layer, pair in one.recorded.items()}
        start = piece.stop


def _leaves(pair: KeysValues, piece: slice) -> KeysValues:
    keys, values = (tensor.detach()[piece].float().requires_grad_(tensor.requires_grad) for tensor in pair)
    return keys, values


def _own_leaves(pool: Pool) -> Pool:
    """The same keys and values as other leaves, which gather gradients of their own."""
    return {
        part: {layer: tuple(leaf.detach().requires_grad_(leaf.requires_grad) for leaf in pair) for layer, pair in layers.items()}  # type: ignore[misc]
        for part, layers in pool.items()
    }


def _add_leaves(pool: Pool, others: list[Pool]) -> None:
    """Add up what the leaves of all lanes have gathered, in the order of the lanes."""
    for part, layers in pool.items():
        for layer, pair in layers.items():
            for which, leaf in enumerate(pair):
                found = [own.grad for other in others if (own := other[part][layer][which]).grad is not None]
                if found:
                    leaf.grad = found[0] if len(found) == 1 else torch.stack(found).sum(0)


def _finish(one: Pass, pool: Pool) -> None:
    """Send the gradients that a pass's keys and values gathered through it; then forget them."""
    made, gradients = [], []
    for layer, pair in one.recorded.items():
        for which, tensor in enumerate(pair):
            if not tensor.requires_grad:
                continue
            leaves = [pool[part.place][layer][which] for part in one.parts]
            made.append(tensor)
            gradients.append(torch.cat([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]).to(tensor.dtype))
    if made:
        torch.autograd.backward(made, gradients)
    for part in one.parts:
        del pool[part.place]


def _layout(documents: list[Document], pool: Pool, record: bool = False) -> Packed:
    rows = [(one.token_ids, one.first_position) for one in documents]
    root = (virtual.ROOT,) if virtual.ROOT in pool else ()
    before = len(pool[virtual.ROOT][0][0]) if root else 0
    paths = [(*root, *one.path) for one in documents]
    return Packed([len(one.inputs) for one in documents], paths, pool, record=record, before=before, rows=rows, team=sequence.team())


def micro_batch_losses(model: Any, head: Head, documents: list[Document], pool: Pool) -> tuple[Tensor, Tensor]:
    """The sum of the losses of the trained tokens, and each of them."""
    trained_ND, targets_N = trained_rows(model, documents, pool)
    # What is measured is always -log p: only what is learned from is smoothed.
    return head.losses(trained_ND, targets_N, head.label_smoothing if torch.is_grad_enabled() else 0.0)


def trained_rows(model: Any, documents: list[Document], pool: Pool) -> tuple[Tensor, Tensor]:
    """The hidden states that have to predict a trained token, (N, D), and these tokens, (N,), a document after the other."""
    hidden_TD = run_packed(model, documents, _layout(documents, pool))
    rows, targets, start = [], [], -sequence.run_of(sum(len(one.inputs) for one in documents)).start
    for document in documents:
        rows += [start + row for row in document.rows]
        targets += document.targets
        start += len(document.inputs)
    device = hidden_TD.device
    # index_select and not hidden[rows]: the backward of fancy indexing is not deterministic.
    return hidden_TD.index_select(0, to_device(rows, device)), to_device(targets, device)


def _gather(sums: Sums, documents: list[Document], each: Tensor) -> None:
    if sums.by_example is not None:
        for document, part in zip(documents, each.split([len(one.targets) for one in documents]), strict=True):
            sums.by_example[document.place] += float(part.sum())


def run_packed(model: Any, documents: list[Document], layout: Packed) -> Tensor:
    """Hidden states after the last norm, (T, D), of documents that stand in one row and do not see each other."""
    device = device_of(model)
    token_ids = [token for document in documents for token in document.inputs]
    positions = [layout.before + document.first_position + place for document in documents for place in range(len(document.inputs))]
    here = sequence.run_of(len(token_ids)) if layout.team else slice(None)
    return run(model, to_device([token_ids[here]], device), to_device([positions[here]], device), layout)[0]


def run(model: Any, tokens: Tensor, positions_BL: Tensor, layout: Any) -> Tensor:
    """Hidden states after the last norm, (B, L, D), of token ids (B, L) or of embeddings (B, L, D); `layout` says what each token sees."""
    # A mask of four dimensions is taken by Transformers as it is: without one it would build a mask of T x T for packed rows at each call.
    no_mask = torch.zeros(1, 1, 1, 1, device=tokens.device)
    given = {"inputs_embeds" if tokens.is_floating_point() else "input_ids": tokens}
    output = decoder(model)(**given, attention_mask=no_mask, position_ids=positions_BL, use_cache=False, luthier_layout=layout)
    hidden_BLD: Tensor = output.last_hidden_state
    return hidden_BLD


@torch.no_grad()
def trace(model: Any) -> None:
    """Send two tokens through the model, for those who want to see which layer is called with what."""
    run_packed(model, [Document([0, 0], 0)], Packed([2]))


def causal_model(model: Any) -> Any:
    """The causal language model itself, out of PEFT's wrapper (which adds nothing to a forward with LoRA layers)."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder(model: Any) -> nn.Module:
    """The model without its head."""
    found: nn.Module = causal_model(model).get_decoder()
    return found


def device_of(model: Any) -> torch.device:
    device: torch.device = next(causal_model(model).parameters()).device
    return device
