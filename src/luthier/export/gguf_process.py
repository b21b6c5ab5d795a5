"""llama.cpp's converter as a program: its script, with the two things that a fine-tuned model needs and it does not do.

A tokenizer whose vocabulary it does not know by its hash is known by how it cuts text into words, and every stop token of the model is
written. Run in a process of its own: the script brings its own `gguf`, and changes what is imported.
"""

import importlib
import importlib.util
import json
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# How tokenizer.json cuts a text before its merges, and what llama.cpp calls that.
CUTS = {
    ("ByteLevel",): "gpt-2",
    ("Digits", "ByteLevel"): "smollm",
    (rf"{_SHORT_FORMS}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}", "ByteLevel"): "llama-bpe",
    (rf"{_SHORT_FORMS}|{_WORDS}|\p{{N}}|{_REST}", "ByteLevel"): "qwen2",
}
STOPS = ("eos", "eot", "eom")


def cut_name(tokenizer: dict[str, Any]) -> str | None:
    """llama.cpp's name for how a tokenizer.json cuts text into words; None for a way that it has no name for here."""
    cut = tokenizer.get("pre_tokenizer") or {}
    steps = cut.get("pretokenizers", [cut]) if isinstance(cut, dict) else []
    found = tuple(step["pattern"].get("Regex", "") if step.get("type") == "Split" else str(step.get("type")) for step in steps)
    prefixed = any(step.get("add_prefix_space") for step in steps)
    return None if prefixed else CUTS.get(found)


def stop_fields(stops: Sequence[int], eos: int | None) -> dict[str, int]:
    """The stop tokens by the names that a GGUF file has for them: its own end of text first, where answers end there."""
    ordered = sorted(stops, key=lambda stop: stop != eos)
    if len(ordered) > len(STOPS):
        raise SystemExit(f"a GGUF file has room for {len(STOPS)} stop tokens, and the model has {len(ordered)}: {ordered}")
    return dict(zip(STOPS, ordered, strict=False))


def main(package: str, script: str, stops: list[int], arguments: list[str]) -> None:
    """Run the converter's `script` with these arguments, as if it had been called."""
    spec = importlib.util.find_spec(package)
    assert spec
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations))) / "llama.cpp"
    sys.path[:0] = [str(folder), str(folder / "gguf-py")]
    _teach_cuts(importlib.import_module("conversion.base"))
    _teach_stops(importlib.import_module("gguf"), stops)
    sys.argv = [script, *arguments]
    runpy.run_path(str(folder / script), run_name="__main__")


def _teach_cuts(base: Any) -> None:
    by_hash = base.TextModel.get_vocab_base_pre

    def by_hash_or_cut(self: Any, tokenizer: Any) -> str:
        try:
            return str(by_hash(self, tokenizer))
        except NotImplementedError:
            found = cut_name(json.loads((Path(self.dir_model) / "tokenizer.json").read_text(encoding="utf-8")))
            if found is None:
                raise
            return found

    base.TextModel.get_vocab_base_pre = by_hash_or_cut


def _teach_stops(gguf: Any, stops: list[int]) -> None:
    add = gguf.SpecialVocab.add_to_gguf

    def add_with_stops(self: Any, writer: Any, quiet: bool = False) -> None:
        self.special_token_ids |= stop_fields(stops, self.special_token_ids.get("eos"))
        add(self, writer, quiet)

    if stops:  # an adapter has none
        gguf.SpecialVocab.add_to_gguf = add_with_stops


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:])
