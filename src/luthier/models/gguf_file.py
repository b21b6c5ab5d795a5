"""What a GGUF file says of itself: read in Python, with its sizes checked, before any program written in C sees it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import ModelError

MAGIC = b"GGUF"
# Where llama.cpp ends an answer, by the names of the metadata.
STOPS = ("eos", "eot", "eom")


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A GGUF file: a whole model, or an adapter (`kind` is model or adapter)."""

    path: Path
    kind: str
    architecture: str
    template: str | None  # the chat template inside it
    stop_ids: frozenset[int]
    context: int | None  # the tokens that the model was made for
    alpha: float | None  # of an adapter
    types: dict[str, int]  # how many tensors are stored in each format


def read(path: Path) -> GgufFile:
    """What the file holds. Raises ModelError where it is missing, cut, or no GGUF."""
    try:
        with open(path, "rb") as file:
            begins = file.read(len(MAGIC))
    except OSError as error:
        raise ModelError(f"cannot be read ({error.strerror})", where=str(path), next_step="name a .gguf file") from error
    if begins != MAGIC:
        raise ModelError("is no GGUF file", where=str(path), next_step="luthier export RUN --to gguf makes one")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(path)
        found = _of(path, reader)
    except (ValueError, IndexError, KeyError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise ModelError(f"cut or damaged: {error}", where=str(path), next_step="export it again") from error
    end = max((int(tensor.data_offset) + int(tensor.n_bytes) for tensor in reader.tensors), default=0)
    if end > path.stat().st_size:
        raise ModelError(f"cut: it has {path.stat().st_size:,} bytes and promises {end:,}", where=str(path), next_step="export it again")
    return found


def _of(path: Path, reader: Any) -> GgufFile:
    def value(name: str) -> Any:
        field = reader.get_field(name)
        return None if field is None else field.contents()

    architecture = str(value("general.architecture"))
    stops = [value(f"tokenizer.ggml.{stop}_token_id") for stop in STOPS]
    types: dict[str, int] = {}
    for tensor in reader.tensors:
        types[tensor.tensor_type.name] = types.get(tensor.tensor_type.name, 0) + 1
    return GgufFile(
        path=path,
        kind=str(value("general.type") or "model"),
        architecture=architecture,
        template=value("tokenizer.chat_template"),
        stop_ids=frozenset(int(stop) for stop in stops if stop is not None),
        context=value(f"{architecture}.context_length"),
        alpha=value("adapter.lora.alpha"),
        types=types,
    )
