"""The records that cross the borders between rooms. Frozen, slotted, and each knows where it came from."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

# Rows that a message names.
ROWS_NAMED = 8


@dataclass(frozen=True, slots=True)
class Source:
    """Where a row was read: the file as the user named it, and the line (1-based)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def named(rows: Sequence[Source]) -> str:
    """Rows by name, the first ROWS_NAMED of them, and how many more there are."""
    more = f" and {len(rows) - ROWS_NAMED} more" if len(rows) > ROWS_NAMED else ""
    return ", ".join(str(row) for row in rows[:ROWS_NAMED]) + more


@dataclass(frozen=True, slots=True)
class Turn:
    """One message. `role` is system, user, assistant or tool (or prompt / completion / text where no template is used)."""

    role: str
    content: str
    trained: bool | None = None  # what the row itself says of this message; None leaves it to data.loss_on
    extra: str = ""  # what else the message holds for the template, as a JSON object: tool_calls, name, tool_call_id, reasoning_content


@dataclass(frozen=True, slots=True)
class Conversation:
    """One row as turns. `templated` is False where the text is used as it stands (prompt/completion, plain text).

    A preference row has its better answer in `turns` and the worse one in `rejected`; a judged row (KTO) has a `label`.
    """

    turns: tuple[Turn, ...]
    source: Source
    templated: bool = True
    tools: str = ""  # a JSON list of the tools that the template tells the model of
    rejected: tuple[Turn, ...] = ()  # the worse answer to the same prompt: what follows the turns that both share
    label: bool | None = None  # whether the answer is a good one
    category: str = ""  # a column that sorts the rows, where there is one

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """Everything before the last turn: what a model is asked with when this row is a test question."""
        return self.turns[:-1]

    @property
    def answer(self) -> str:
        """The last turn's text: what the model should say."""
        return self.turns[-1].content


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it was read: its columns, the text it was read from, and its place."""

    value: dict[str, Any]
    raw: str
    source: Source


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row set aside: why (a short name that is counted), the detail, and the row verbatim."""

    reason: str
    detail: str
    source: Source
    raw: str
    rows: int = 1  # how many rows as read it stands for: several where a conversation was gathered from them, 0 for a further path of a tree


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One conversation as tokens. `trained[i]` is True where token i counts in the loss; both have the same length."""

    token_ids: list[int]
    trained: list[bool]
    source: Source

    @property
    def tokens(self) -> int:
        return len(self.token_ids)

    @property
    def trained_tokens(self) -> int:
        return sum(self.trained)


@dataclass(frozen=True, slots=True)
class Judged:
    """A row that judges: a better and a worse answer to one prompt, or one answer that is good (`chosen`) or bad (`rejected`).

    `mismatched` is the prompt with another row's answer (KTO's measure of drift). `reference` holds the log-probability, in nats, of each of
    `examples` and then of `mismatched`, by the model before the training; it is empty where the objective needs none.
    """

    chosen: TokenizedExample | None
    rejected: TokenizedExample | None
    mismatched: TokenizedExample | None = None
    reference: tuple[float, ...] = ()

    @property
    def examples(self) -> tuple[TokenizedExample, ...]:
        """What is trained: the better answer first."""
        return tuple(one for one in (self.chosen, self.rejected) if one is not None)

    @property
    def source(self) -> Source:
        return self.examples[0].source

    @property
    def tokens(self) -> int:
        return sum(one.tokens for one in self.examples)

    @property
    def trained_tokens(self) -> int:
        return sum(one.trained_tokens for one in self.examples)


@dataclass(frozen=True, slots=True)
class UpdateLoss:
    """What the engine measured on one update. `loss` is the mean over trained tokens, in nats."""

    loss: float
    logical_tokens: int  # what the rows hold
    executed_tokens: int  # what was run: fewer where a prefix was shared or a tail was left out
    trained_tokens: int
    row_losses: list[float] | None = None  # where asked for: the mean loss of each example, in the order given
    metrics: dict[str, float] = field(default_factory=dict)  # an objective's own numbers, by TRL's names


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer update. Field names are those of metrics.jsonl."""

    step: int
    epoch: float
    loss: float
    grad_norm: float
    learning_rate: float
    logical_tokens: int
    executed_tokens: int
    trained_tokens: int
    seconds: float
    peak_bytes: int
    metrics: dict[str, float] = field(default_factory=dict)  # an objective's own numbers, by TRL's names; left out where there are none


@dataclass(frozen=True, slots=True)
class Metric:
    """A measured value with its 95 % interval and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said. `stopped`: it ended by itself; else it was cut at the longest answer that was asked for."""

    text: str
    tokens: int
    stopped: bool


@dataclass(frozen=True, slots=True)
class Likelihood:
    """The log-probability, in nats, of the trained tokens of a row, how many these are, and of how many the model would have said the same."""

    log_probability: float
    tokens: int
    right: int


@dataclass(frozen=True, slots=True)
class Scorecard:
    """Models by name ("base", "base_5shot", "tuned", ...), each with its metrics; how and on what they were measured.

    `differences` are those of each model to the first one, over the rows that both answered (paired bootstrap); `costs` what an answer of
    each model took: seconds, tokens, and a price where one is known.
    """

    models: dict[str, dict[str, Metric]]
    decoding: dict[str, object]
    data: dict[str, object]
    differences: dict[str, dict[str, Metric]] = field(default_factory=dict)
    costs: dict[str, dict[str, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out row with what each model answered, for people to read."""

    prompt: str
    expected: str
    answers: dict[str, str]
    source: Source


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an exported artifact is from the model that was trained. None: the engine that runs the artifact does not give it.

    `max_logit_difference` in logits, `mean_kl` and `max_kl` in nats a token, `greedy_agreement` the share of equal answers, `top1_agreement`
    the share of the answers' tokens at which both find the same word likeliest.
    """

    artifact: str
    engine: str
    max_logit_difference: float | None
    mean_kl: float | None
    greedy_agreement: float
    threshold: dict[str, float]
    passed: bool
    onto: str = ""  # of a merged adapter: the base it was merged onto, where there is a choice
    stored: str = ""  # the number format of the artifact
    max_kl: float | None = None
    max_logit_difference_in_std: float | None = None  # in standard deviations of the trained model's logits
    top1_agreement: float | None = None
    perplexity: dict[str, float] = field(default_factory=dict)  # of the answers' tokens: "trained" and "artifact"
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)  # the run's own metrics on the prompts: of each "trained" and "artifact"
    prompts: int = 0  # how many answers were compared
    differs: str = ""  # where it failed: the first layer or the token that differs


@dataclass(frozen=True, slots=True)
class Resolved:
    """A setting that was `auto`: its name, the value chosen, why, and where the rule comes from ("": from this run's own numbers)."""

    name: str
    value: object
    why: str
    source: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What this machine is and what it measured: bytes are bytes, rates are GFLOP/s of one 1,024-row product."""

    device: str  # cpu | cuda | mps
    name: str
    cores: int
    memory_bytes: int
    bf16_gflops: float
    fp32_gflops: float
    fp16_gflops: float = 0.0  # 0: not measured, because this machine has bf16
    attention: str = ""  # the fastest attention for packed documents on a GPU; "": not measured, because this is none
    host_bytes: int = 0  # main memory of the host that a GPU is in; 0: not known, or this is no GPU

    @property
    def faster_precision(self) -> str:
        if self.fp16_gflops > 1.2 * max(self.bf16_gflops, self.fp32_gflops):
            return "fp16"
        return "bf16" if self.bf16_gflops > 1.2 * self.fp32_gflops else "fp32"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check: ok, warning or error; what was seen; and how to mend it ("" when ok)."""

    status: str
    subject: str
    seen: str
    mend: str = ""
    details: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Proof:
    """What one check of `luthier verify` found. `status` is passed, failed or not_for_this_config (`evidence` then says why not).

    `numbers` are what was measured; `next_step` is "" unless it failed.
    """

    check: str
    status: str
    evidence: str
    next_step: str = ""
    numbers: dict[str, object] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a search: what it tried, how it ended, and what the held-out rows gave.

    `state` is running, done, pruned, diverged or failed (`why` says more). `curve` has a measurement for each part of the run that is over,
    counted from 1. `value` is that of the model the run left; None where it left none. `run` is its folder, below the search's.
    """

    number: int
    values: dict[str, Any]
    state: str = "running"
    run: str = ""
    value: float | None = None
    curve: dict[int, float] = field(default_factory=dict)
    updates: int = 0
    seconds: float = 0.0
    why: str = ""
