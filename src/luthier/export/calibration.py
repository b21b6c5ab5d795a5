"""Run rows through a model block after block, so that each block is changed after what came before it has been, and sees what comes of it."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.models.blocks import known_blocks

# What is read of the calibration rows: more changes little (docs/decisions/0011).
MOST_TOKENS = 4096
MOST_TOKENS_OF_A_ROW = 512
Grams = Mapping[str, Tensor]
Work = Callable[[int, nn.Module, Grams, Callable[[], Tensor]], None]


def rows_of(calibration: Sequence[list[int]]) -> list[list[int]]:
    """The rows that are read, cut to what is wanted of them. Raises ModelError where there are none."""
    found: list[list[int]] = []
    for row in calibration:
        if sum(map(len, found)) >= MOST_TOKENS:
            break
        if row:
            found.append(row[:MOST_TOKENS_OF_A_ROW])
    if not found:
        raise ModelError(
            "needs rows to measure the inputs of its layers on", where="calibration", next_step="export a run whose rows are still there"
        )
    return found


@torch.no_grad()
def in_turn(model: Any, rows: Sequence[list[int]], layers: Sequence[str], work: Work) -> None:
    """Call `work(number, block, grams, run)` for each block: `grams` holds, by the layer's name in the block, the sum of x x^T over all
    tokens, and `run()` gives what the block, as it is then, makes of the first row.

    `layers` are the whole names of the layers that are wanted. Raises ModelError for a model whose blocks are not one list.
    """
    blocks = known_blocks(model, "compressing")
    prefix = next(name for name, module in model.named_modules() if module is blocks)
    hidden, arguments = _entering(model, blocks, rows)
    for number, block in enumerate(blocks):
        begins = f"{prefix}.{number}."
        wanted: dict[str, Any] = {
            name.removeprefix(begins): block.get_submodule(name.removeprefix(begins)) for name in layers if name.startswith(begins)
        }
        grams = {name: torch.zeros(layer.in_features, layer.in_features, device=layer.weight.device) for name, layer in wanted.items()}
        seen: list[Tensor] = []
        hooks = [layer.register_forward_pre_hook(_adding(grams[name], seen)) for name, layer in wanted.items()]
        for state, asked in zip(hidden, arguments[number], strict=True):
            _run(block, state, asked)
        for hook in hooks:
            hook.remove()
        work(number, block, grams, partial(_run, block, hidden[0], arguments[number][0]))
        hidden = [_run(block, state, asked) for state, asked in zip(hidden, arguments[number], strict=True)]


def _adding(gram_II: Tensor, seen: list[Tensor]) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    """A hook that adds a layer's inputs. `seen` holds the last inputs and their product: several layers have the same."""

    def add(layer: nn.Module, given: tuple[Any, ...]) -> None:
        if not seen or seen[0] is not given[0]:
            inputs = given[0].reshape(-1, gram_II.shape[0]).float()
            seen[:] = [given[0], inputs.T @ inputs]
        gram_II.add_(seen[1])

    return add


def _entering(model: Any, blocks: nn.ModuleList, rows: Sequence[list[int]]) -> tuple[list[Tensor], list[list[dict[str, Any]]]]:
    """What enters the first block for each row, and what each block is called with beside its input."""
    hidden: list[Tensor] = []
    arguments: list[list[dict[str, Any]]] = [[] for _ in blocks]

    def noting(number: int) -> Callable[..., None]:
        def note(block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            state = given[0] if given else named.pop("hidden_states")
            if number == 0:
                hidden.append(state)
            arguments[number].append(named)

        return note

    hooks = [block.register_forward_pre_hook(noting(number), with_kwargs=True) for number, block in enumerate(blocks)]
    for row in rows:
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False)
    for hook in hooks:
        hook.remove()
    return hidden, arguments


def _run(block: nn.Module, state: Tensor, asked: Mapping[str, Any]) -> Tensor:
    given = block(state, **asked)
    found: Tensor = given[0] if isinstance(given, tuple) else given
    return found
