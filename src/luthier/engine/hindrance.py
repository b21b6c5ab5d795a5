"""Whether the fast path is right for a model: what its parts show, and what two tokens sent through its attention show.

No model is known by name. What remains after this is caught by `Engine.check`, which compares one row with the plain twin.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from luthier.engine import update
from luthier.engine.blocks import Rule
from luthier.engine.packed import Packed

ATTENTION_KINDS = {"full_attention", "sliding_attention"}
# What else a config calls its layers, in words.
KINDS = {
    "linear_attention": "recurrent layers, whose state would run on from document to document",
    "conv": "convolutions over neighboring tokens, which would reach into other documents",
    "chunked_attention": "attention in chunks that are counted from the beginning of a row",
    "indexed_attention": "attention that picks the keys that it sees",
}


def of_parts(model: Any) -> str:
    """Why the fast path would be wrong for this causal language model, from its config and its modules; "" where nothing speaks against it."""
    head = model.get_output_embeddings()
    matrix = head.original_module if isinstance(head, AuxiliaryTrainingWrapper) else head  # trained: PEFT stands around the same matrix
    decoder = update.decoder(model)
    parts = set(decoder.modules())
    if type(matrix) is not nn.Linear or not any(module is head for module in model.children()):
        return "its head is not one plain matrix"
    if model.get_input_embeddings() not in parts or head in parts:
        return "its layers cannot be run without its head"
    if any(next(child.parameters(), None) is not None and child is not head and decoder not in set(child.modules()) for child in model.children()):
        return "it has parts beside its layers and its head"
    if kinds := set(getattr(model.config.get_text_config(), "layer_types", None) or []) - ATTENTION_KINDS:
        return f"it has {' and '.join(KINDS.get(kind, f'{kind} layers') for kind in sorted(kinds))}"
    if any(isinstance(module, nn.Conv1d) for module in parts):
        return f"it has {KINDS['conv']}"
    if "position_ids" not in inspect.signature(decoder.forward).parameters:
        return "it counts positions by itself, from the beginning of a row"
    return ""


@dataclass(slots=True)
class _Visits:
    """A layout that also notes which layers came to it."""

    packed: Packed
    layers: list[int] = field(default_factory=list)
    windows: list[int] = field(default_factory=list)

    def attend(self, layer: int, q_HTD: Tensor, k_KTD: Tensor, v_KTD: Tensor, rule: Rule) -> Tensor:
        self.layers.append(layer)
        if rule.window is not None:
            self.windows.append(rule.window)
        return self.packed.attend(layer, q_HTD, k_KTD, v_KTD, rule)


@torch.no_grad()
def of_attention(model: Any) -> str:
    """What the attention door finds when two documents of two tokens go through a model that enters it; "" where all is well."""
    visits = _Visits(Packed([2, 2]))
    training = model.training
    model.train()  # dropout inside the attention shows only then
    try:
        with torch.random.fork_rng():
            tokens_BL = torch.tensor([[0, 1, 0, 1]], device=update.device_of(model))
            update.run(model, tokens_BL, tokens_BL, visits)  # each token stands at the position of its own number
    except NotImplementedError as refusal:
        return str(refusal)
    except Exception as error:  # what a foreign architecture raises has no common class
        return f"a trial of two tokens failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
    finally:
        model.train(training)
    return _amiss(visits, update.causal_model(model).config.get_text_config())


def _amiss(visits: _Visits, config: Any) -> str:
    layers = config.num_hidden_layers
    if len(visits.layers) != len(set(visits.layers)):
        return "a layer attends more than once"
    if len(visits.layers) != layers:
        return f"{layers - len(visits.layers)} of its {layers} layers do not attend: they are recurrent, or keep a state"
    kinds = getattr(config, "layer_types", None) or (["sliding_attention"] * layers if getattr(config, "sliding_window", None) else [])
    if kinds.count("sliding_attention") != len(visits.windows):
        return "its layers do not tell their attention of the window"
    return ""


def longest_exact(model: Any) -> int | None:
    """The tokens up to which a row's position encoding does not depend on its length; None where it never does.

    LongRoPE (arXiv:2402.13753) and dynamic scaling change every position's encoding once a row is longer: then rows cannot run together.
    """
    config = update.causal_model(model).config.get_text_config()
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = rope.values() if any(isinstance(value, dict) for value in rope.values()) else [rope]
    changing = [kind for kind in kinds if isinstance(kind, dict) and kind.get("rope_type") in ("longrope", "dynamic")]
    lengths = [kind.get("original_max_position_embeddings") or config.max_position_embeddings for kind in changing]
    return min(lengths, default=None)
