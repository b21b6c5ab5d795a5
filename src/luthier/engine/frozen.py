"""What the layers below the lowest trained one make of each row, kept on disk: they do not change while a run lasts, so they run once.

Exact: the stored hidden states are those that the layers above would have been given. (AutoFreeze, Liu 2021, arXiv:2102.01386, caches in
the same way; there the frozen part grows.)

Letters: T packed tokens, D width.
"""

import shutil
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier import files
from luthier.engine import virtual
from luthier.engine.batches import Document, packs
from luthier.engine.engine import CHECK_TOLERANCE, Engine
from luthier.engine.packed import Bottom, Packed
from luthier.engine.update import causal_model, decoder, run_packed
from luthier.errors import RunError
from luthier.models.blocks import blocks
from luthier.records import TokenizedExample

FILE = "frozen-layers.bin"
# Rows that are sorted by length and run together when the file is filled.
FILL_ROWS = 64
# What a run writes beside this file.
LEAST_FREE_BYTES = 50_000_000


@dataclass(slots=True)
class Store:
    """Hidden states that enter layer `layers`, (tokens of all rows, D), in a file that is mapped into memory.

    `places` says where a row begins and how many tokens it has, by the hash of its token ids. `served` counts the tokens that were not run again.
    """

    layers: int
    states: Tensor
    places: dict[bytes, tuple[int, int]]
    served: list[int] = field(default_factory=list)  # of each call; lanes call at once

    def of(self, documents: Sequence[tuple[list[int], int, int]]) -> Tensor | None:
        """The states of packed documents, (1, T, D); each is (all token ids of its row, first token, how many). None where a row is not here."""
        parts = []
        for token_ids, first, tokens in documents:
            begin, stored = self.places.get(_key(token_ids), (0, 0))
            if first + tokens > stored:
                return None
            parts.append(self.states[begin + first : begin + first + tokens])
        self.served.append(sum(len(part) for part in parts))
        return torch.cat(parts)[None] if parts else None


def _key(token_ids: list[int]) -> bytes:
    return blake2b(array("i", token_ids).tobytes(), digest_size=16).digest()


def decoder_layers(model: Any) -> nn.ModuleList | None:
    """The list of the model's layers, in order; None where it is not found."""
    return blocks(causal_model(model))


def frozen_layers(model: Any) -> tuple[int, str]:
    """How many of the lowest layers give the same states for a row throughout a run; where it is none, why."""
    layers = decoder_layers(model)
    if layers is None:
        return 0, "its layers are not one list"
    if virtual.tokens(model):
        return 0, "every layer sees the virtual tokens, which are trained"
    above: set[int] = set()
    lowest = len(layers)
    for place in reversed(range(len(layers))):
        if any(parameter.requires_grad for parameter in layers[place].parameters()):
            lowest = place
    above = {id(module) for layer in layers[lowest:] for module in layer.modules()}
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    if any(parameter.requires_grad and id(parameter) not in inside for parameter in decoder(model).parameters()):
        return 0, "the embedding is trained"
    if any(isinstance(module, nn.Dropout) and module.p > 0 and id(module) not in above for module in decoder(model).modules()):
        return 0, "part of what they give is dropped while it trains"
    if lowest == 0:
        return 0, "the lowest layer is trained (lora.layers_to_transform or freeze.layers chooses which ones are)"
    return lowest, ""


def store_bytes(model: Any, examples: Sequence[TokenizedExample]) -> int:
    """What the states of all rows take on disk: tokens * width * bytes of a number; a row that is repeated counts once."""
    tokens = {_key(example.token_ids): len(example.token_ids) - 1 for example in examples}
    config = causal_model(model).config.get_text_config()
    return sum(tokens.values()) * int(config.hidden_size) * int(causal_model(model).dtype.itemsize)


@contextmanager
def cached(engine: Engine, examples: Sequence[TokenizedExample], folder: Path, say: Callable[[str], None]) -> Iterator[Store | None]:
    """Run the frozen layers once over `examples`, and spare them while this lasts; the file in `folder` is deleted at the end.

    Gives None, and tells `say` why, where nothing can be spared. Raises RunError where the disk is too small.
    """
    layers, hindrance = frozen_layers(engine.model)
    if engine.plain_reason or hindrance:
        say(f"cache_frozen_layers has no effect: {engine.plain_reason or hindrance}")
        yield None
        return
    size = store_bytes(engine.model, examples)
    _require_room(folder, size)
    of_all = len(decoder_layers(engine.model) or ())
    say(f"the lowest {layers} of {of_all} layers are frozen and run once: what they give takes {size / 1e6:,.0f} MB in {folder / FILE} until the end")
    path = folder / FILE
    give_back = _install(engine, None, layers)
    try:
        places = _fill(engine, examples, path)
        give_back()
        width = causal_model(engine.model).config.get_text_config().hidden_size
        numbers = path.stat().st_size // causal_model(engine.model).dtype.itemsize
        states = torch.from_file(str(path), shared=False, size=numbers, dtype=causal_model(engine.model).dtype).view(-1, width)
        store = Store(layers, states, places)
        plain = engine.held_out_loss(examples[:1])
        give_back = _install(engine, store, layers)
        if problem := _difference(engine, examples[0], plain):
            give_back()
            say(f"cache_frozen_layers has no effect: {problem}")
            yield None
        else:
            yield store
            say(f"{sum(store.served):,} tokens were spared the lowest {layers} of {of_all} layers")
    finally:
        give_back()
        path.unlink(missing_ok=True)


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size + LEAST_FREE_BYTES:
        raise RunError(
            f"what the frozen layers give takes {size / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free",
            where=str(folder),
            next_step="training.cache_frozen_layers: false, or set output_dir to another disk",
        )


def _difference(engine: Engine, example: TokenizedExample, plain: float) -> str:
    """What is wrong with the stored states, as one row's loss shows it, or ""."""
    loss = engine.held_out_loss([example])
    difference = abs(loss - plain) / max(abs(plain), 1e-6)
    if difference <= CHECK_TOLERANCE.get(causal_model(engine.model).dtype, 2e-2):
        return ""
    return f"with stored states the loss of {example.source} differs by {difference:.1%}"


@torch.no_grad()
def _fill(engine: Engine, examples: Sequence[TokenizedExample], path: Path) -> dict[bytes, tuple[int, int]]:
    """Run the lower layers over all rows and write what they give. Where each row stands in the file."""
    places: dict[bytes, tuple[int, int]] = {}

    def pieces() -> Iterator[bytes]:
        written = 0
        for start in range(0, len(examples), FILL_ROWS):
            rows = {_key(example.token_ids): example.token_ids for example in examples[start : start + FILL_ROWS]}
            # Nothing is predicted from the last token of a row, so it is not run.
            documents = [Document(token_ids[:-1], 0, token_ids=token_ids) for key, token_ids in rows.items() if key not in places]
            for pack in packs(sorted(documents, key=lambda one: len(one.inputs)), engine.micro_batch_tokens):
                yield _states(engine, pack).cpu().contiguous().view(torch.uint8).numpy().tobytes()
                for one in pack:
                    places[_key(one.token_ids)] = (written, len(one.inputs))
                    written += len(one.inputs)

    training = engine.model.training
    engine.model.eval()
    files.write_pieces(path, pieces())
    engine.model.train(training)
    return places


def _states(engine: Engine, documents: list[Document]) -> Tensor:
    layout = Packed([len(one.inputs) for one in documents], bottom=Bottom(alone=True))
    run_packed(engine.model, documents, layout)
    states = layout.bottom.states if layout.bottom else None
    assert states is not None
    return states[0]


def _install(engine: Engine, store: Store | None, lowest: int) -> Callable[[], None]:
    """Give every layer a forward that knows of stored states. Returns the call that gives the forwards back."""
    layers = list(decoder_layers(engine.model) or ())
    before = [layer.__dict__.get("forward") for layer in layers]
    for place, layer in enumerate(layers):
        layer.forward = _forward_of(layer.forward, place, lowest, store)

    def give_back() -> None:
        for layer, forward in zip(layers, before, strict=True):
            layer.__dict__.pop("forward", None)
            if forward is not None:
                layer.forward = forward

    return give_back


def _forward_of(plain: Callable[..., Any], place: int, lowest: int, store: Store | None) -> Callable[..., Any]:
    def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        layout = kwargs.get("luthier_layout")
        if not isinstance(layout, Packed):
            return plain(hidden_states, *args, **kwargs)
        if place == 0 and store is not None and layout.rows:
            states = store.of([(token_ids, first, tokens) for (token_ids, first), tokens in zip(layout.rows, layout.lengths, strict=True)])
            layout.bottom = None if states is None else Bottom(states.to(hidden_states.device))
        if layout.bottom is None:
            return plain(hidden_states, *args, **kwargs)
        if place < lowest:
            return plain(hidden_states, *args, **kwargs) if layout.bottom.alone else hidden_states
        if place > lowest:
            return hidden_states if layout.bottom.alone else plain(hidden_states, *args, **kwargs)
        if layout.bottom.alone:
            layout.bottom.states = hidden_states
            return hidden_states
        return plain(layout.bottom.states, *args, **kwargs)

    return forward
