"""Do a model's tokenizer, its chat template and its embedding belong together? Asked before any weights are loaded."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.models import weights

# Strings that vocabularies cut differently: letters, digits, spaces, other scripts, bytes that need a fallback.
PROBES = (
    "A luthier builds and tunes instruments.",
    "  two spaces\n\tand a tab, 1234567890",
    "Straße, naïve, Ελλάδα, Москва, 東京, हिन्दी, 한국어",
    "🎸🎻 café ﬁne \u200b x\u0301",
    'def f(x): return {"a": [x**2, -1e-5]}',
)
# Fingerprints of real tokenizers (2026-11-22): names on folders and packages are sometimes wrong, ids never are.
FAMILIES = {
    # fingerprint        whose              model_type begins with
    "d2fb410eb5507712": ("Mistral 7B v0.1", ("mistral", "mixtral")),
    "5abcfe7bd3cc1135": ("Llama 2", ("llama",)),
    "ae34ebb84b45e340": ("Llama 3", ("llama", "mllama")),
    "9c2bfe26b034fec7": ("Qwen 2 and 3", ("qwen",)),
    "59c14c5de8e1e01c": ("Gemma 3", ("gemma3",)),
    "5b2612ba576a8fd2": ("DeepSeek V3", ("deepseek",)),
    "97363878d05824ac": ("gpt-oss", ("gpt_oss",)),
}
# What chat templates write for themselves and a tokenizer of the same model reads as one token.
CONTROL = re.compile(r"<\|[a-zA-Z_]+\|>|<(?:start|end)_of_turn>")
# Embeddings are padded by up to 3 % in the families that were looked at; a fifth is another vocabulary.
LEAST_USED_SHARE = 0.8
FOLDERS = "restore the tokenizer's files that came with the model, or name another model"


def check_alignment(tokenizer: Any, folder: Path) -> list[str]:
    """Raise ModelError where the tokenizer cannot belong to the model in `folder`; returns what is only odd, as lines to say.

    `tokenizer` is the folder's own, before tokens are added to it. Checked are: ids beyond the embedding, a missing end token, added tokens
    whose ids differ between files, end tokens that the model's config sees elsewhere, and a begin token that is written twice.
    """
    _check_added_tokens(tokenizer, folder)
    rows = embedding_rows(folder)
    _check_range(tokenizer, rows, folder)
    _check_end(tokenizer, folder)
    _check_beginning(tokenizer, folder)
    return _odd(tokenizer, rows) + _of_another_family(tokenizer, folder)


def check_fits(tokenizer: Any, folder: Path) -> None:
    """Raise ModelError where a tokenizer that takes the place of the model's own could not be trained with."""
    _check_end(tokenizer, folder, config={})
    _check_beginning(tokenizer, folder)


def fingerprint(tokenizer: Any) -> str:
    """Which tokenizer this really is, whatever its name says: a hash of the ids of strings that vocabularies cut differently."""
    ids = [list(tokenizer(probe, add_special_tokens=False)["input_ids"]) for probe in PROBES]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def embedding_rows(folder: Path) -> int | None:
    """Rows of the embedding as it lies in the weights' headers; the config's number where no tensor is called so."""
    shapes = weights.tensor_shapes(folder)
    for name, shape in shapes.items():
        if name.endswith(("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")) and len(shape) == 2:
            return shape[0]
    config = weights.read_config(folder)
    inner = config.get("text_config")
    value = (inner if isinstance(inner, dict) else config).get("vocab_size")
    return value if isinstance(value, int) else None


def _check_range(tokenizer: Any, rows: int | None, folder: Path) -> None:
    if rows is None:
        return
    beyond = sorted((token, piece) for piece, token in tokenizer.get_vocab().items() if token >= rows)
    if not beyond:
        return
    token, piece = beyond[0]
    added = all(one in tokenizer.added_tokens_decoder for one, _ in beyond)
    listed = ", ".join(piece for _, piece in beyond[:5])
    cure = f"take them out of the tokenizer and set tokenizer.add_special_tokens: [{listed}], which adds their rows" if added else FOLDERS
    what = "1 token has an id" if len(beyond) == 1 else f"{len(beyond):,} tokens have ids"
    raise ModelError(
        f"{what} beyond the embedding's {rows:,} rows (0 to {rows - 1:,}): {piece} is {token}", where=_tokenizer_file(folder), next_step=cure
    )


def _check_added_tokens(tokenizer: Any, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and added_tokens.json may each say which id an added token has; they must agree."""
    listed: dict[str, tuple[int, str]] = {}
    for name, ids in _added_by_file(folder).items():
        for spelling, token in ids.items():
            before, elsewhere = listed.setdefault(spelling, (token, name))
            if before != token:
                problem = f"the added token {spelling} is {before} in {elsewhere} and {token} in {name}: added tokens are shifted"
                raise ModelError(problem, where=str(folder / name), next_step=FOLDERS)
    for spelling, (token, name) in listed.items():
        if (loaded := tokenizer.convert_tokens_to_ids(spelling)) != token:
            problem = f"the added token {spelling} should be {token} and is read as {loaded}: added tokens are shifted"
            raise ModelError(problem, where=str(folder / name), next_step=FOLDERS)


def _added_by_file(folder: Path) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    if entries := _json(folder / "tokenizer.json").get("added_tokens"):
        found["tokenizer.json"] = {entry["content"]: entry["id"] for entry in entries}
    if entries := _json(folder / "tokenizer_config.json").get("added_tokens_decoder"):
        found["tokenizer_config.json"] = {entry["content"]: int(token) for token, entry in entries.items()}
    if entries := _json(folder / "added_tokens.json"):
        found["added_tokens.json"] = {str(spelling): int(token) for spelling, token in entries.items()}
    return found


def _json(path: Path) -> dict[str, Any]:
    return weights.read_object(path, FOLDERS) if path.is_file() else {}


def _check_end(tokenizer: Any, folder: Path, config: dict[str, Any] | None = None) -> None:
    end = tokenizer.eos_token_id
    if end is None:
        raise ModelError(
            "the tokenizer has no end-of-text token (eos_token), so the model could not learn to stop, and rows could not be padded",
            where=str(folder / "tokenizer_config.json"),
            next_step='set "eos_token" there to the token that ended the texts the model was made of',
        )
    ids = _end_ids(folder) if config is None else set()
    special = {token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special} | set(tokenizer.all_special_ids)
    if ids and end not in ids and not ids & special:
        spelled = ", ".join(f"{token} ({tokenizer.convert_ids_to_tokens(token)!r} here)" for token in sorted(ids))
        raise ModelError(
            f"the model ends its texts with token {spelled}, and this tokenizer with {end} ({tokenizer.eos_token}): it is another model's",
            where=_tokenizer_file(folder),
            next_step=FOLDERS,
        )


def _end_ids(folder: Path) -> set[int]:
    """End tokens by the model's own config and generation settings."""
    config = _json(folder / "config.json")
    inner = config.get("text_config")
    values = [config.get("eos_token_id"), (inner if isinstance(inner, dict) else {}).get("eos_token_id")]
    values.append(_json(folder / "generation_config.json").get("eos_token_id"))
    listed = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return {token for token in listed if isinstance(token, int) and token >= 0}


def _check_beginning(tokenizer: Any, folder: Path) -> None:
    begin = tokenizer.bos_token_id
    if begin is None:
        return
    plain = list(tokenizer("a")["input_ids"])
    if plain[:2] == [begin, begin]:
        problem = f"two rules put {tokenizer.bos_token} before a text: the tokenizer writes it twice"
        raise ModelError(problem, where=_tokenizer_file(folder), next_step='set "add_bos_token": false in tokenizer_config.json')
    rendered = _rendered(tokenizer)
    if rendered is not None and list(tokenizer(rendered, add_special_tokens=False)["input_ids"])[:2] == [begin, begin]:
        problem = f"the chat template writes {tokenizer.bos_token} twice at the beginning"
        raise ModelError(problem, where=str(folder), next_step="mend chat_template.jinja (or chat_template in tokenizer_config.json)")


def _rendered(tokenizer: Any) -> str | None:
    """A question in the chat template; None where there is none, or where it refuses (rows will say why)."""
    if tokenizer.chat_template is None:
        return None
    try:
        return str(tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True))
    except Exception:  # a template is its author's program: it may raise anything
        return None


def _odd(tokenizer: Any, rows: int | None) -> list[str]:
    notes = []
    if rows and len(tokenizer) < LEAST_USED_SHARE * rows:
        notes.append(f"the tokenizer has {len(tokenizer):,} tokens and the embedding {rows:,} rows: it may belong to another model")
    known = tokenizer.get_vocab()
    unknown = sorted({mark for mark in CONTROL.findall(_rendered(tokenizer) or "") if mark not in known})
    if unknown:
        notes.append(f"the chat template writes {', '.join(unknown)}, which this tokenizer cuts into pieces: it may be another model's template")
    return notes


def _of_another_family(tokenizer: Any, folder: Path) -> list[str]:
    """A line where the tokenizer is one that is known, of models of another kind."""
    kind = str(_json(folder / "config.json").get("model_type", ""))
    whose, kinds = FAMILIES.get(fingerprint(tokenizer), ("", ("",)))
    return (
        []
        if kind.startswith(kinds)
        else [f"this is {whose}'s tokenizer, whatever its files are called, and the model is a {kind}: check that it belongs"]
    )


def _tokenizer_file(folder: Path) -> str:
    return str(folder / "tokenizer.json") if (folder / "tokenizer.json").is_file() else str(folder)
