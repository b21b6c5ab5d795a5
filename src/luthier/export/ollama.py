"""A Modelfile for Ollama beside its GGUF file.

Ollama knows chat templates in Go's language and recognizes a few of a file's own. One is written where it can be proved: each message is
then a text before it, its content and a text after it, and the golden prompts of the contract come out of these pieces letter by letter.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier import files
from luthier.errors import ModelError
from luthier.export import gguf
from luthier.models import gguf_file, load

MODELFILE = "Modelfile"
MARK = "\x02content\x03"
QUOTES = '"""'
# Without a setting Ollama gives a model 2,048 or 4,096 tokens and forgets the beginning of a longer conversation.
MOST_CONTEXT = 8192


@dataclass(frozen=True, slots=True)
class Pieces:
    """A chat template as text around each message, by its role, and what an answer follows. `system` stands in where none is given."""

    around: Mapping[str, tuple[str, str]]
    opening: str
    system: str

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The prompt for a conversation."""
        first = [{"role": "system", "content": self.system}] if self.system and messages[0]["role"] != "system" else []
        said = [self.around[one["role"]][0] + one["content"] + self.around[one["role"]][1] for one in [*first, *messages]]
        return "".join(said) + self.opening

    def in_go(self) -> str:
        """The same in the language of Go's templates. Ollama puts the Modelfile's SYSTEM before a conversation without one."""
        roles = "".join(
            f'{{{{ {"if" if number == 0 else "else if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        )
        return f"{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{self.opening}"


def write_ollama(merged: Path, to: Path, *, quantize: str, contract: Path) -> Path:
    """Write a GGUF file of the model in `merged` and its Modelfile into `to`. Gives the Modelfile."""
    model = gguf.write_gguf(merged, to, quantize=quantize)
    return write_modelfile(model, to, merged=merged, contract=contract)


def write_modelfile(model: Path, to: Path, *, merged: Path, contract: Path, adapter: Path | None = None) -> Path:
    """Write the Modelfile for the GGUF file `model`, and for a LoRA `adapter` as GGUF, which lie in `to`."""
    agreed = files.read_json(contract)
    tokenizer = load.load_tokenizer(merged)
    pieces = proved(tokenizer, agreed["golden"]) if agreed.get("templated", True) else None
    system = agreed.get("system") or (pieces.system if pieces else "")
    stops = agreed["stop_tokens"]
    context = min(gguf_file.read(model).context or MOST_CONTEXT, MOST_CONTEXT)
    lines = [f"FROM ./{model.name}", *([f"ADAPTER ./{adapter.name}"] if adapter else [])]
    lines += [f"PARAMETER stop {_quoted(stop)}" for stop in stops] + [f"PARAMETER num_ctx {context}"]
    if pieces:
        lines.append(f"TEMPLATE {_quoted(pieces.in_go())}")
    else:
        lines.append("# No TEMPLATE: the model's cannot be shown to be the same in Go's language. Ollama goes by the one inside the GGUF file.")
    if system:
        lines.append(f"SYSTEM {_quoted(system)}")
    target = to / MODELFILE
    files.write_text(target, "\n".join(lines) + "\n")
    return target


def proved(tokenizer: Any, golden: Sequence[Mapping[str, Any]]) -> Pieces | None:
    """The pieces of the tokenizer's chat template, where they give every golden prompt and a few longer ones; else None."""
    probes = [
        [{"role": "user", "content": "a"}],
        [{"role": "system", "content": "s"}, {"role": "user", "content": " b\n"}],
        [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}, {"role": "user", "content": "e"}],
    ]
    try:
        pieces = _pieces(tokenizer)
        texts = [(messages, _render(tokenizer, messages)) for messages in probes]
        texts += [(list(one["messages"]), tokenizer.decode(one["ids"])) for one in golden]
        plain = all(not one.get("tools") and not any("extra" in message for message in one["messages"]) for one in golden)
        same = plain and all(pieces.render(messages) == text for messages, text in texts)
    except Exception:  # what a template raises for a role that it does not know has no common class
        return None
    return pieces if same and "{{" not in "".join(_literals(pieces)) else None


def _literals(pieces: Pieces) -> list[str]:
    return [text for pair in pieces.around.values() for text in pair] + [pieces.opening]


def _pieces(tokenizer: Any) -> Pieces:
    """What stands around a message of each role, found by rendering messages that cannot be mistaken."""
    head, user_after = _between(tokenizer, "user")
    opening = _between(tokenizer, "user", prompt=True)[-1].removeprefix(user_after)
    assistant_after = _between(tokenizer, "user", "assistant")[-1]
    _, to_assistant, to_user, _ = _between(tokenizer, "user", "assistant", "user")
    user_before = to_user.removeprefix(assistant_after)
    system_before, after_system, _ = _between(tokenizer, "system", "user")
    system_after = after_system.removesuffix(user_before)
    around = {
        "system": (system_before, system_after),
        "user": (user_before, user_after),
        "assistant": (to_assistant.removeprefix(user_after), assistant_after),
    }
    # What a conversation without a system message begins with.
    return Pieces(around, opening, head.removesuffix(user_before).removeprefix(system_before).removesuffix(system_after))


def _between(tokenizer: Any, *roles: str, prompt: bool = False) -> list[str]:
    """The texts before, between and after messages of these roles."""
    text = _render(tokenizer, [{"role": role, "content": MARK} for role in roles], prompt)
    return text.split(MARK)


def _render(tokenizer: Any, messages: list[dict[str, str]], prompt: bool = True) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))


def _quoted(text: str) -> str:
    """A text as a Modelfile has it. Raises ModelError for one that cannot stand in it."""
    if QUOTES in text or text.endswith('"'):
        raise ModelError(f"{text[:40]!r} cannot stand in a Modelfile", where=MODELFILE, next_step="--to gguf, and llama.cpp")
    return f"{QUOTES}{text}{QUOTES}"
