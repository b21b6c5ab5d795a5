"""The chat template of a tokenizer: its own, one of ours, or a user's file. A base model without one is no error.

The chosen one becomes part of the tokenizer, is saved with it, and its end of turn is the tokenizer's end token.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from luthier.errors import ConfigError

CHATML_TOKENS = ("<|im_start|>", "<|im_end|>")
NAMES = {
    # name      what closes a turn (None: the tokenizer's end-of-text token)
    "alpaca": None,
    "chatml": "<|im_end|>",
    "zephyr": None,
    "inst": None,
}
PROBE = "Probe answer 7351."


@dataclass(frozen=True, slots=True)
class Chosen:
    """The template that is in place: its name, and why it was taken."""

    name: str
    why: str


def install(tokenizer: Any, asked: str, base: Path, added_tokens: Sequence[str] = ()) -> Chosen:
    """Give the tokenizer the template `asked`: auto, a name of NAMES, or a FILE.jinja beside `base`.

    Of the `added_tokens` those that the template writes become control tokens: no text may hold them, and no answer shows them.

    Raises ConfigError for an unknown name, a file that is missing or no template (with its line), and one that cannot be used here.
    """
    chosen = _chosen(tokenizer, asked, base)
    if chosen.name in NAMES:
        _install_ours(tokenizer, chosen.name)
    elif asked != "auto":
        tokenizer.chat_template = _read(base / asked)
        _check_usable(tokenizer, base / asked)
    _mark_control_tokens(tokenizer, added_tokens)
    if is_file(asked):
        _stop_at_its_end(tokenizer)
    return chosen


def _mark_control_tokens(tokenizer: Any, added_tokens: Sequence[str]) -> None:
    control = [token for token in added_tokens if token in str(tokenizer.chat_template)]
    if control:
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in control], special_tokens=True)


def is_file(asked: str) -> bool:
    """Whether the setting `template` names a file."""
    return asked.endswith((".jinja", ".jinja2", ".j2"))


def _chosen(tokenizer: Any, asked: str, base: Path) -> Chosen:
    if asked in NAMES:
        return Chosen(asked, "as given")
    if is_file(asked):
        return Chosen(str(base / asked), "as given")
    if asked != "auto":
        near = difflib.get_close_matches(asked, [*NAMES, "auto"], n=1)
        raise ConfigError(
            f"{asked!r} is no template", where="template", next_step=f"{(near or ['auto'])[0]} (one of auto, {', '.join(NAMES)}, or a FILE.jinja)"
        )
    if tokenizer.chat_template is not None:
        return Chosen("the tokenizer's own", "it comes with the model")
    vocabulary = tokenizer.get_vocab()
    if all(token in vocabulary for token in CHATML_TOKENS):
        return Chosen("chatml", f"the model has no chat template, and its vocabulary has {' and '.join(CHATML_TOKENS)}")
    if "[INST]" in vocabulary:
        return Chosen("inst", "the model has no chat template, and its vocabulary has [INST]")
    return Chosen("alpaca", "the model has no chat template, and no tokens of one in its vocabulary")


def _install_ours(tokenizer: Any, name: str) -> None:
    missing = [token for token in CHATML_TOKENS if name == "chatml" and token not in tokenizer.get_vocab()]
    if missing:
        raise ConfigError(
            f"chatml needs the token {missing[0]}, which is not in the model's vocabulary",
            where="template",
            next_step="template: alpaca, or add them with tokenizer.add_special_tokens: [<|im_start|>, <|im_end|>]",
        )
    if NAMES[name] is None and tokenizer.eos_token is None:
        raise ConfigError(
            f"{name} ends a turn with the end-of-text token, and this tokenizer has none", where="template", next_step="template: chatml"
        )
    text = (package_files("luthier.models") / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n")
    tokenizer.chat_template = _with_beginning(text, tokenizer)
    if end := NAMES[name]:
        tokenizer.eos_token = end


def _with_beginning(text: str, tokenizer: Any) -> str:
    """A conversation begins as plain text does with this tokenizer: with its begin-of-text token, or without."""
    ids = list(tokenizer("")["input_ids"])
    return "{{- bos_token -}}" + text if ids[:1] == [tokenizer.bos_token_id] else text


def _read(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(
            "there is no such file", where=str(path), next_step="check the template's path; it is relative to the settings file"
        ) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot be read ({error})", where=str(path), next_step="a template is a text file in UTF-8") from error
    if not text.strip():
        raise ConfigError("is empty", where=str(path), next_step="write the template, or take `template` out of the settings")
    return text


def _check_usable(tokenizer: Any, path: Path) -> None:
    from jinja2 import TemplateError, TemplateSyntaxError  # comes with torch and Transformers

    try:
        written = tokenizer.apply_chat_template(_talk(), tokenize=False)
    except TemplateSyntaxError as error:
        raise ConfigError(f"is no Jinja template: {error.message}", where=f"{path}:{error.lineno}", next_step="mend that line") from error
    except TemplateError as error:
        raise ConfigError(f"refuses a question and its answer: {error}", where=str(path), next_step="mend the template") from error
    except Exception as error:  # a template is a program: it may raise anything
        raise ConfigError(f"fails on a question and its answer: {error}", where=str(path), next_step="mend the template") from error
    if PROBE not in written:
        raise ConfigError("does not write what the assistant says", where=str(path), next_step="it needs a {{ message['content'] }} for each message")


def _stop_at_its_end(tokenizer: Any) -> None:
    """Where the file ends its turns with another control token, that one ends an answer from now on."""
    after = tokenizer.apply_chat_template(_talk(), tokenize=False).rpartition(PROBE)[2]
    found = [token for token in tokenizer.all_special_tokens if token in after]
    added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special and str(token) in after]
    ends = sorted({*found, *added}, key=after.index)
    if ends and tokenizer.eos_token not in ends:
        tokenizer.eos_token = ends[0]


def _talk() -> list[dict[str, str]]:
    return [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": PROBE}]
