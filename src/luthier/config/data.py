"""Settings of the rows: which, how they are read, and what of them is trained."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from luthier.config.section import Auto, Name, Section, Text

FormatName = Literal[
    "messages",
    "sharegpt",
    "alpaca",
    "completion",
    "text",
    "dolly",
    "question_answer",
    "openassistant",
    "openassistant_tree",
    "message_log",
    "preference",
    "kto",
]


class SourceSettings(Section):
    """One source of rows, where more than its path is to be said."""

    path: Name = Field(description="a file, a folder, a pattern (data/*.jsonl), - for standard input, or a hub data set (org/name)")
    weight: float = Field(
        1.0, gt=0, le=1000, description="how often each row is used in an epoch: 2 = twice, 0.5 = every second row, drawn by the seed"
    )
    format: FormatName | None = Field(None, description="how its rows are built; null: as data.format says")
    columns: dict[Text, Name] = Field({}, description="our name of a column -> its name in this source")
    split: Text | None = Field(None, description="the split of a hub data set, or the key of a .json file that holds several lists")
    name: Text | None = Field(None, description="the configuration of a hub data set")
    revision: Text | None = Field(None, description="the version of a hub data set: a commit, a tag or a branch")
    license: Text | None = Field(None, description="the license of its rows, such as CC-BY-4.0: kept with the run, and in NOTICE at export")
    attribution: Text | None = Field(None, description="whom to name for its rows: authors, title, address")


class DataSettings(Section):
    """Which rows, and what to do with them."""

    train: Name | SourceSettings | Annotated[list[Name | SourceSettings], Field(min_length=1)] = Field(
        description="rows to learn from: a file, a folder, a pattern (data/*.jsonl), - for standard input, a hub data set (org/name), "
        "or a list of them, each with a weight if wanted"
    )
    eval: Text | SourceSettings | None = Field(
        "5%", description="rows held out: a share of the training rows (5%), a file (or {path: ..., split: ..., columns: ...}), or null for none"
    )
    max_rows: int | None = Field(
        None, ge=1, description="use at most so many training rows, and at most so many held-out ones, drawn by the seed; null: all"
    )
    format: FormatName | Auto = Field("auto", description="how a row is built; auto finds it from the columns and says what it found")
    columns: dict[Text, Name] = Field({}, description="our name of a column -> its name in the files, such as {question: Frage, answer: Antwort}")
    strict: bool = Field(
        True,
        description="false: consecutive turns of one speaker are joined, a late system message is moved first, "
        "and turns after the last answer are left out; each is listed",
    )
    encoding: Text = Field("utf-8", description="how text files are encoded")
    tree_paths: Literal["best", "all"] = Field("best", description="of a tree of messages (OpenAssistant): the best-ranked answers, or every path")
    max_length: Annotated[int, Field(ge=8, le=100_000_000)] | Auto = Field(
        "auto", description="longest row in tokens; auto is the model's context, at most 2048"
    )
    too_long: Literal["error", "drop", "split", "truncate"] = Field(
        "error",
        description="rows over max_length: error sets up to 1 % aside as rejected and stops above that; drop sets all aside; "
        "split cuts plain text into windows and chats between turns; truncate leaves out the beginning of the context, never any of the answer",
    )
    reserve_for_generation: int = Field(0, ge=0, description="tokens of max_length that rows leave free, as room for longer answers when serving")
    loss_on: Literal["assistant", "last_assistant", "all"] = Field(
        "assistant", description="what is trained: every answer, the last one, or every token"
    )

    replay: Text | None = Field(
        None, description="general rows mixed into the training rows against forgetting, as a share of their number (10%); null: none"
    )
    replay_from: Text | None = Field(None, description="the file that replay takes its rows from; null: rows that come with Luthier")

    @field_validator("replay")
    @classmethod
    def _is_a_share(cls, value: str | None) -> str | None:
        if value is not None and not (value.endswith("%") and _is_share(value[:-1])):
            raise ValueError("a share is expected, above 0% and at most 100%, such as 10%")
        return value

    @field_validator("eval")
    @classmethod
    def _is_a_share_or_a_source(cls, value: str | SourceSettings | None) -> str | SourceSettings | None:
        if isinstance(value, str) and value.endswith("%") and not _is_share(value[:-1]):
            raise ValueError("a share should be above 0% and at most 100%; null holds nothing out")
        if isinstance(value, SourceSettings) and value.weight != 1:
            raise ValueError("a weight has no effect on rows that are held out")
        if isinstance(value, SourceSettings) and (value.license or value.attribution):
            raise ValueError("a license has no effect on rows that are held out: nothing of them is passed on")
        return value

    @property
    def sources(self) -> list[SourceSettings]:
        """The training sources, each with all that is known of it."""
        given = self.train if isinstance(self.train, list) else [self.train]
        return [SourceSettings(path=source) if isinstance(source, str) else source for source in given]

    @property
    def eval_source(self) -> SourceSettings | None:
        """Where the held-out rows stand, unless they are a share of the training rows."""
        if isinstance(self.eval, SourceSettings) or self.eval is None:
            return self.eval
        return None if self.eval.endswith("%") else SourceSettings(path=self.eval)

    @property
    def replay_share(self) -> float:
        """Replayed rows for each training row, 0 to 1."""
        return float(self.replay[:-1]) / 100 if self.replay else 0.0

    @property
    def eval_share(self) -> float:
        """The share of the training rows that is held out, 0 to 1."""
        return float(self.eval[:-1]) / 100 if isinstance(self.eval, str) and self.eval.endswith("%") else 0.0


def _is_share(percent: str) -> bool:
    try:
        return 0 < float(percent) <= 100
    except ValueError:
        return False
