"""How a model's control tokens are written, read from its files alone: a text that spells one is no text to the model."""

import json
from pathlib import Path

CONTROL = 3  # GGUF's token type


def of_folder(folder: Path) -> list[str]:
    """Those of a Transformers folder (tokenizer.json); none where it has another kind of tokenizer."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return []
    added = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
    return [token["content"] for token in added if token.get("special") and token.get("content")]


def of_gguf(path: Path) -> list[str]:
    """Those of a GGUF model."""
    from gguf import GGUFReader

    reader = GGUFReader(path)
    words, kinds = reader.get_field("tokenizer.ggml.tokens"), reader.get_field("tokenizer.ggml.token_type")
    if words is None or kinds is None:
        return []
    places = [place for place, kind in enumerate(kinds.contents()) if kind == CONTROL]
    return [str(words.contents(place)) for place in places]
