"""Talk to a run: the tuned model, its base, or both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from luthier.config.load import load_config
from luthier.config.methods import METHODS
from luthier.data.tokenize import knows_system
from luthier.engine import Engine, opening
from luthier.engine.sampling import GREEDY, Sampling
from luthier.errors import CallError, DataError
from luthier.models import quantized
from luthier.records import Turn
from luthier.reporting import Reporter, Silent
from luthier.run_folder import RunFolder
from luthier.serve import contract
from luthier.serve.session import Session

VOICES = ("tuned", "base")


@dataclass(slots=True)
class Talk:
    """An opened run, with a conversation for each voice (tuned, base)."""

    engine: Engine
    sessions: dict[str, Session]
    max_new_tokens: int
    run: RunFolder
    sampling: Sampling = GREEDY
    stop: Sequence[str] = ()
    base: Engine | None = None  # of a run that trained every weight, once it was asked

    def ask(self, text: str, voice: str = "tuned") -> Iterator[str]:
        """The answer of one voice, piece by piece. Raises CallError where the model's chat template refuses the messages."""
        stream = self._stream_base if voice == "base" else self._stream
        try:
            yield from self.sessions[voice].ask(text, stream)
        except DataError as error:
            raise CallError(error.problem, where="chat", next_step='another question, or another system message (none: --system "")') from error

    def _stream(self, turns: list[Turn]) -> Iterator[str]:
        return self._say(self.engine, turns)

    def _say(self, engine: Engine, turns: list[Turn]) -> Iterator[str]:
        return engine.stream(turns, max_new_tokens=self.max_new_tokens, sampling=self.sampling, stop=self.stop)

    def _stream_base(self, turns: list[Turn]) -> Iterator[str]:
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
    used = system if system is not None else promised["system"]
    if system is None and used:
        reporter.say(f"system message (the one this run was trained with): {used}")
    elif system is None and promised["templated"]:
        reporter.say("system message: none, as in the training rows (a chat template may put in its own)")
    if used and promised["templated"] and not knows_system(engine.tokenizer):
        reporter.say("this chat template has no system role: the system message is put before the first question")
    length = max_new_tokens or max(256, int(load_config(run.config).settings.evaluation.max_new_tokens))
    sessions = {voice: Session(used, promised["templated"]) for voice in VOICES}
    return Talk(engine, sessions, length, run, sampling, stop)
