"""Talk to a run (the tuned model, its base, or both), to a model by itself, or to a server."""

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.load import load_config
from luthier.config.methods import METHODS
from luthier.data.endpoint import Endpoint, Question
from luthier.data.tokenize import knows_system
from luthier.engine import Engine, opening
from luthier.engine.sampling import GREEDY, Sampling
from luthier.errors import CallError, DataError
from luthier.models import find, quantized
from luthier.rag.finding import open_finder
from luthier.rag.grounding import NOT_THERE, Grounded, Grounder, Grounding, cited, reading_of
from luthier.rag.index import open_index
from luthier.records import Turn
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.serve.session import Session

VOICES = ("tuned", "base")
MAX_NEW_TOKENS = 256


@dataclass(slots=True)
class Talk:
    """An opened run, with a conversation for each voice (tuned, base)."""

    engine: Engine
    sessions: dict[str, Session]
    max_new_tokens: int
    run: RunFolder | None  # None: a model by itself
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    base: Engine | None = None  # of a run that trained every weight, once it was asked
    grounder: Grounder | None = None  # where answers come from documents
    grounded: Grounded | None = None  # the last question with its passages

    def look_up_in(self, index: Path, reporter: Reporter, how: Grounding) -> None:
        """From now on every question is answered from the passages of an index."""
        self.grounder = Grounder(open_finder(open_index(index), reporter), how, reading_of(self.engine.tokenizer), self.engine.context, reporter.say)

    def ask(self, text: str, voice: str = "tuned") -> Iterator[str]:
        """The answer of one voice, piece by piece. Raises CallError where the model's chat template refuses the messages."""
        stream = self._stream_base if voice == "base" else self._stream
        try:
            yield from self.sessions[voice].ask(text, stream)
        except DataError as error:
            raise CallError(error.problem, where="chat", next_step='another question, or another system message (none: --system "")') from error

    def sources(self, answer: str) -> tuple[list[dict[str, object]], list[int]]:
        """The passages that the last question was answered from, and the numbers of those that the answer names."""
        return (self.grounded.passages, cited(answer, len(self.grounded.used))) if self.grounded else ([], [])

    def _stream(self, turns: list[Turn]) -> Iterator[str]:
        return self._say(self.engine, turns)

    def _say(self, engine: Engine, turns: list[Turn]) -> Iterator[str]:
        if self.grounder is not None:
            self.grounded = self.grounder(turns, self.max_new_tokens)
            if not self.grounded.used:
                return iter([NOT_THERE])
            turns = self.grounded.turns
        return engine.stream(turns, max_new_tokens=self.max_new_tokens, sampling=self.sampling, stop=self.stop)

    def _stream_base(self, turns: list[Turn]) -> Iterator[str]:
        if self.run is None:
            raise CallError("a model by itself has no base beside it", where="chat --base", next_step="leave --base and --compare out")
        if self.engine.adapted:
            with opening.as_base(self.engine, self.run):
                yield from self._stream(turns)
            return
        self.base = self.base or opening.open_base(self.run, self.engine.tokenizer)
        yield from self._say(self.base, turns)


def about_base(run: RunFolder) -> str:
    """What answers as the base of a run, where that is not the model as it was fetched; else nothing."""
    settings = load_config(run.config).settings
    return f"base: {quantized.base_of(settings)}, which the adapter was trained beside" if METHODS[settings.method].quantized_base else ""


@dataclass(slots=True)
class FarTalk:
    """A conversation with a model of a server that speaks OpenAI's API."""

    endpoint: Endpoint
    session: Session
    settings: dict[str, Any]

    def ask(self, text: str, voice: str = "tuned") -> Iterator[str]:
        """The answer, piece by piece. Raises LuthierError where the server cannot be asked, refuses, or breaks off."""
        yield from self.session.ask(text, self._stream)

    def sources(self, answer: str) -> tuple[list[dict[str, object]], list[int]]:
        """None: a server looks up by itself."""
        return [], []

    def _stream(self, turns: list[Turn]) -> Iterator[str]:
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        return self.endpoint.stream(Question(uuid.uuid4().hex, messages, self.settings))


def open_far(
    url: str,
    reporter: Reporter | None = None,
    *,
    model: str | None = None,
    key: str = "",
    system: str | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> FarTalk:
    """A talk with a server; without `model` the first name that it lists which stands on a base (an adapter), or else its first.

    Without `system` the server decides. Raises LuthierError where it does not list its models.
    """
    reporter = reporter or Silent()
    endpoint = Endpoint(url, key)
    if endpoint.shows_key:
        reporter.say(f"{endpoint.host}: the key is sent in clear text (http); https hides it")
    if model is None:
        offered = endpoint.models()
        if not offered:
            raise CallError("offers no model", where=endpoint.url, next_step="--model NAME, or start the server with one")
        model = next((name for name, parent in offered.items() if parent), next(iter(offered)))
        reporter.say(f"asking {model} (--model NAME asks another; there are: {', '.join(list(offered)[:20])})")
    settings: dict[str, Any] = {"model": model, "temperature": sampling.temperature}
    settings |= {"max_tokens": max_new_tokens} if max_new_tokens else {}
    settings |= {"top_p": sampling.top_p, "seed": sampling.seed} if sampling.temperature else {}
    settings |= {"stop": list(stop)} if stop else {}
    return FarTalk(endpoint, Session(system or None), settings)


def open_model(
    name: str,
    reporter: Reporter | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> Talk:
    """A talk with a model by itself: a folder (an exported one, or an adapter's, too), a name of the catalog or a hub id.

    A folder with a contract is held to it, and without `system` its system message is used, and said.
    """
    reporter = reporter or Silent()
    engine = opening.open_model(name, reporter)
    promised = contract.of(None, find.folder_of(name), engine.tokenizer, engine.stop_ids)
    return Talk(engine, _sessions(engine, promised, system, reporter), max_new_tokens or MAX_NEW_TOKENS, None, sampling, stop)


def open_talk(
    run: RunFolder,
    reporter: Reporter | None = None,
    *,
    system: str | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling = GREEDY,
    stop: Sequence[str] = (),
) -> Talk:
    """Open a run to talk to. Without `system` the one that the run was trained with is used, and said."""
    reporter = reporter or Silent()
    engine = opening.open_trained(run, reporter)
    promised = contract.read_checked(run, engine.tokenizer, engine.stop_ids)
    length = max_new_tokens or max(MAX_NEW_TOKENS, int(load_config(run.config).settings.evaluation.max_new_tokens))
    return Talk(engine, _sessions(engine, promised, system, reporter), length, run, sampling, stop)


def _sessions(engine: Engine, promised: dict[str, Any], system: str | None, reporter: Reporter) -> dict[str, Session]:
    """A conversation for each voice, as the contract promises it; {}: of a model that has none."""
    templated = bool(promised.get("templated", engine.tokenizer.chat_template is not None))
    used = system if system is not None else promised.get("system")
    if system is None and used:
        reporter.say(f"system message (the one it was trained with): {used}")
    elif system is None and promised and templated:
        reporter.say("system message: none, as in the training rows (a chat template may put in its own)")
    if used and templated and not knows_system(engine.tokenizer):
        reporter.say("this chat template has no system role: the system message is put before the first question")
    return {voice: Session(used, templated) for voice in VOICES}
