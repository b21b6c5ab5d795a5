"""`luthier rag ask --model`: a question answered by a model from the passages of an index."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luthier.engine import Engine
from luthier.errors import CallError
from luthier.evaluate import targets
from luthier.rag import grounding
from luthier.rag.finding import open_finder
from luthier.rag.grounding import Grounded, Grounder, Grounding
from luthier.rag.index import open_index
from luthier.records import Turn
from luthier.reporting import Reporter, Silent
from luthier.serve import contract

MAX_NEW_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Replied:
    """An answer, the passages it was given, and which of them it names."""

    answer: str
    passages: list[dict[str, object]]
    cited: list[int]
    fit: float


@dataclass(frozen=True, slots=True)
class Reader:
    """A model that answers from an index. `system` and `templated` are as the model was trained to be asked."""

    engine: Engine
    grounder: Grounder
    system: str | None
    templated: bool
    max_new_tokens: int

    def ground(self, question: str) -> Grounded:
        """The question with its passages, as this model is asked. Raises DataError where even the question has no room."""
        if not question.strip():
            raise CallError("is empty", where="question", next_step='luthier rag ask INDEX "..."')
        turns = [Turn("system", self.system)] if self.system and self.templated else []
        return self.grounder([*turns, Turn("user" if self.templated else "prompt", question)], self.max_new_tokens)

    def stream(self, grounded: Grounded) -> Iterator[str]:
        """The answer, piece by piece; where nothing fits, the words that say so, and the model is not asked."""
        if not grounded.used:
            yield grounding.NOT_THERE
            return
        yield from self.engine.stream(grounded.turns, max_new_tokens=self.max_new_tokens)


def open_reader(
    folder: Path, model: str, how: Grounding, reporter: Reporter | None = None, *, reranker: str | None = None, max_new_tokens: int = MAX_NEW_TOKENS
) -> Reader:
    """An index and a model (a run, a checkpoint, a name of the catalog, a hub id or a folder) that answers from it."""
    reporter = reporter or Silent()
    how.check()
    opened = open_index(folder)  # before the model: what is wrong with it is told at once
    target = targets.target_of(model)
    finder = open_finder(opened, reporter, reranker=reranker)
    engine = targets.open_target(target, model, reporter)
    promised = contract.of(target.run, target.folder, engine.tokenizer, engine.stop_ids)
    grounder = Grounder(finder, how, grounding.reading_of(engine.tokenizer), engine.context, reporter.say)
    return Reader(engine, grounder, promised.get("system"), bool(promised.get("templated", True)), max_new_tokens)


def replied(answer: str, grounded: Grounded) -> Replied:
    """An answer with what it was given."""
    return Replied(answer, grounded.passages, grounding.cited(answer, len(grounded.used)), grounded.fit)
