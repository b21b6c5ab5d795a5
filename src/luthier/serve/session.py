"""A conversation with a model: what was said so far, and the system message that the run was trained with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from luthier.records import Turn

Stream = Callable[[list[Turn]], Iterator[str]]


@dataclass(slots=True)
class Session:
    """Turns so far. `templated` is False for a run on prompt/completion rows: each question then stands by itself."""

    system: str | None = None
    templated: bool = True
    turns: list[Turn] = field(default_factory=list)

    def ask(self, text: str, answer: Stream) -> Iterator[str]:
        """The answer, piece by piece; the turns remember both once it has ended."""
        if not self.templated:
            yield from answer([Turn("prompt", text)])
            return
        if self.system and not self.turns:
            self.turns.append(Turn("system", self.system))
        asked = [*self.turns, Turn("user", text)]
        said = ""
        for piece in answer(asked):
            said += piece
            yield piece
        self.turns = [*asked, Turn("assistant", said)]
