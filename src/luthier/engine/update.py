"""One update through the model: the shared prefix once, every micro-batch, one backward pass through the prefix at the end."""

from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine import head
from luthier.engine.attention import KeysValues, Packed
from luthier.engine.batches import Document, Step


def forward_backward(model: Any, step: Step) -> float:
    """Mean loss over the trained tokens of the update; gradients of that mean are added to the parameters.

    The prefix's keys and values are leaves: every micro-batch adds to their gradient, in fp32, and one backward pass
    through the prefix ends the update. Exact: the parameters do not change within an update.
    """
    recorded = _run_prefix(model, step.prefix) if step.prefix else {}
    leaves = {layer: tuple(tensor.detach().float().requires_grad_() for tensor in pair) for layer, pair in recorded.items()}
    total = torch.zeros((), dtype=torch.float32)
    for documents in step.micro_batches:
        loss = _micro_batch_loss(model, documents, leaves, len(step.prefix))
        (loss / step.trained_tokens).backward()
        total += loss.detach().cpu()
    _finish_prefix(recorded, leaves)
    return float(total) / step.trained_tokens


@torch.no_grad()
def loss(model: Any, step: Step) -> float:
    """Sum of the losses over the trained tokens, without gradients."""
    recorded = _run_prefix(model, step.prefix) if step.prefix else {}
    return sum(float(_micro_batch_loss(model, documents, recorded, len(step.prefix))) for documents in step.micro_batches)


def _run_prefix(model: Any, prefix: list[int]) -> dict[int, KeysValues]:
    """Keys and values of the prefix, by layer, with the graph that made them."""
    layout = Packed(lengths=[len(prefix)], record=True)
    run_packed(model, [prefix], 0, layout)
    return layout.recorded


def _finish_prefix(recorded: dict[int, KeysValues], leaves: dict[int, tuple[Tensor, ...]]) -> None:
    pairs = [
        (made, leaf.grad.to(made.dtype))
        for layer in leaves
        for made, leaf in zip(recorded[layer], leaves[layer], strict=True)
        if leaf.grad is not None
    ]
    pairs = [(made, gradient) for made, gradient in pairs if made.requires_grad]
    if pairs:
        torch.autograd.backward([made for made, _ in pairs], [gradient for _, gradient in pairs])


def _micro_batch_loss(model: Any, documents: list[Document], prefix: Any, prefix_tokens: int) -> Tensor:
    layout = Packed(lengths=[len(document.inputs) for document in documents], prefix=prefix)
    hidden_TD = run_packed(model, [document.inputs for document in documents], prefix_tokens, layout)
    rows, targets, start = [], [], 0
    for document in documents:
        rows += [start + row for row in document.rows]
        targets += document.targets
        start += len(document.inputs)
    device = hidden_TD.device
    # index_select and not hidden[rows]: the backward of fancy indexing is not deterministic.
    trained_ND = hidden_TD.index_select(0, torch.tensor(rows, device=device))
    return head.loss_sum(trained_ND, head_weight(model), torch.tensor(targets, device=device))


def run_packed(model: Any, documents: list[list[int]], first_position: int, layout: Packed) -> Tensor:
    """Hidden states after the last norm, (T, D), of documents that stand in one row and do not see each other."""
    device = device_of(model)
    token_ids = [token for tokens in documents for token in tokens]
    positions = [first_position + place for tokens in documents for place in range(len(tokens))]
    output = decoder(model)(
        input_ids=torch.tensor([token_ids], device=device),
        position_ids=torch.tensor([positions], device=device),
        use_cache=False,
        luthier_layout=layout,
    )
    hidden_TD: Tensor = output.last_hidden_state[0]
    return hidden_TD


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


def head_weight(model: Any) -> Tensor:
    """The head's rows, (V, D). Where some of them are trained this is a new tensor at each call, which leads to their gradient."""
    weight: Tensor = causal_model(model).get_output_embeddings().weight
    return weight
