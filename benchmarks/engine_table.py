"""The arithmetic of the engine's benchmark: what an update must compute, which losses pass, which bars are met. Numbers in, numbers out."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine_sets import WHAT

from luthier.records import TokenizedExample

# How far the mean loss of one update may be from the plain twin's in fp32, relative.
TOLERANCE = {"bf16": 0.01, "fp32": 1e-4}
# A tool that packs has other rows in its updates: only the mean over all trained tokens of the run can be compared.
PACKED_TOLERANCE = 0.02
BARS = {
    # method, set         times the best peer's best setting
    ("lora", "short"):  3.0,
    ("lora", "shared"): 5.0,
    ("lora", "long"):   1.5,
    ("full", "short"):  2.0,
}  # fmt: skip
LEAST_UTILISATION = 0.60
LATEST_START_S = 8.0


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Llama-shaped model that its arithmetic depends on, in parameters."""

    body: int  # linear layers, without embedding and head
    head: int
    adapter: int
    attention: int  # width of all query heads times layers

    @classmethod
    def of(cls, config: dict[str, Any], rank: int) -> "Shape":
        hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
        width = config.get("head_dim") or hidden // config["num_attention_heads"]
        queries, keys = width * config["num_attention_heads"], width * config["num_key_value_heads"]
        linear = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden), (hidden, inner), (hidden, inner), (inner, hidden)]
        return cls(
            body=layers * sum(inputs * outputs for inputs, outputs in linear),
            head=hidden * config["vocab_size"],
            adapter=layers * sum(rank * (inputs + outputs) for inputs, outputs in linear),
            attention=queries * layers,
        )


def flops(shape: Shape, method: str, executed: int, trained: int, visible: float) -> float:
    """What an update has to compute, forward and backward: nothing twice, the head on trained tokens only, attention on visible pairs only.

    `executed` tokens run through the body, `visible` pairs of a query and a key are seen. A frozen weight has no gradient of its own.
    """
    passes = 6 if method == "full" else 4
    adapter = 0 if method == "full" else 6 * shape.adapter
    return executed * (passes * shape.body + adapter) + passes * shape.head * trained + 12 * shape.attention * visible


def visible_pairs(rows: Sequence[TokenizedExample]) -> int:
    """Pairs of a query and a key it sees, each row by itself."""
    return sum(len(row.token_ids) * (len(row.token_ids) + 1) // 2 for row in rows)


def visible_pairs_shared(rows: Sequence[TokenizedExample]) -> tuple[int, int]:
    """The same where equal beginnings are run once, and the tokens that are then run."""
    seen: set[tuple[int, int]] = set()
    pairs = 0
    for row in rows:
        beginning = 0
        for depth, token in enumerate(row.token_ids, start=1):
            beginning = hash((beginning, token))
            if (depth, beginning) not in seen:
                seen.add((depth, beginning))
                pairs += depth
    return pairs, len(seen)


@dataclass(slots=True)
class Measured:
    """One tool with one setting on one set, over all its rounds."""

    tool: str
    setting: str
    precision: str
    packed: bool
    peer: bool
    defaults: bool = False
    rounds: list[dict[str, Any]] = field(default_factory=list)  # a worker's answer each, with peak_bytes
    failure: str = ""

    def updates(self, warm_up: int) -> list[dict[str, Any]]:
        return [update for answer in self.rounds for update in answer["updates"][warm_up:]]

    def median(self, key: str) -> float:
        return statistics.median(answer[key] for answer in self.rounds)


@dataclass(frozen=True, slots=True)
class Line:
    """A row of the table. Rates are per second; `gate` is "" where the losses pass."""

    measured: Measured
    gate: str
    logical: float
    executed: float
    trained: float
    padding: float
    rho: float
    utilisation: float
    peak_bytes: float
    first_micro_batch_s: float
    first_update_s: float


def gate(measured: Measured, twin: Sequence[dict[str, Any]]) -> str:
    """Why this tool's speed is not shown, or "". `twin` has the plain twin's updates."""
    if measured.failure:
        return measured.failure
    for answer in measured.rounds:
        updates = answer["updates"]
        if not updates or not all(math.isfinite(update["loss"]) for update in updates):
            return "the loss is not finite"
        if not all(update["grad_norm"] > 0 for update in updates):
            return "the gradient norm is not above zero in every update"
        if reason := _loss_gap(updates, twin, measured):
            return reason
    return ""


def mean_loss(updates: Sequence[dict[str, Any]]) -> float:
    """The mean over all trained tokens of all updates."""
    return sum(update["loss"] * update["trained"] for update in updates) / sum(update["trained"] for update in updates)


def _loss_gap(updates: list[dict[str, Any]], twin: Sequence[dict[str, Any]], measured: Measured) -> str:
    if measured.packed:
        gap = abs(mean_loss(updates) / mean_loss(twin) - 1)
        return "" if gap <= PACKED_TOLERANCE else f"its mean loss is {mean_loss(updates):.5g} and the twin's {mean_loss(twin):.5g} ({gap:.2%} apart)"
    if len(updates) != len(twin):
        return f"it did {len(updates)} updates of {len(twin)}"
    losses, expected = ([update["loss"] for update in several] for several in (updates, twin))
    gaps = [abs(loss / right - 1) for loss, right in zip(losses, expected, strict=True)]
    worst = max(range(len(gaps)), key=gaps.__getitem__)
    # A peer with fp32 weights rounds at other places than a twin whose weights are in bf16.
    if gaps[worst] <= TOLERANCE[measured.precision] * (2 if measured.peer and measured.precision == "bf16" else 1):
        return ""
    return f"the loss of update {worst + 1} is {losses[worst]:.5g} and the twin's {expected[worst]:.5g} ({gaps[worst]:.2%} apart)"


def line(
    measured: Measured, twin: Sequence[dict[str, Any]], updates: Sequence[Sequence[TokenizedExample]], shape: Shape, run: dict[str, Any]
) -> Line:
    """Medians over all timed updates of all rounds. `run` has warm_up, method and gflops by number format."""
    reason = gate(measured, twin)
    if reason:
        return Line(measured, reason, *[math.nan] * 9)
    warm_up = run["warm_up"]
    rates: dict[str, list[float]] = {"logical": [], "executed": [], "trained": [], "utilisation": []}
    padding, rho = [], []
    # Packs hold other rows than the update of that number; of all rows they see as many pairs a token on average.
    everything = [row for rows in updates for row in rows]
    for answer in measured.rounds:
        for place, update in enumerate(answer["updates"][warm_up:], start=warm_up):
            rows = everything if measured.packed else updates[place]
            for key in ("logical", "executed", "trained"):
                rates[key].append(update[key] / update["seconds"])
            work = flops(shape, run["method"], update["executed"], update["trained"], _visible(update, rows))
            rates["utilisation"].append(work / update["seconds"] / 1e9 / run["gflops"][measured.precision])
            padding.append(max(0.0, 1 - update["logical"] / update["executed"]))
            rho.append(max(1.0, update["logical"] / update["executed"]))
    middle = {key: statistics.median(values) for key, values in rates.items()}
    return Line(
        measured,
        reason,
        **middle,
        padding=statistics.median(padding),
        rho=statistics.median(rho),
        peak_bytes=measured.median("peak_bytes"),
        first_micro_batch_s=measured.median("first_micro_batch_s"),
        first_update_s=measured.median("first_update_s"),
    )


def _visible(update: dict[str, Any], rows: Sequence[TokenizedExample]) -> float:
    """Pairs that the update's executed tokens see. Padding sees nothing."""
    if update["executed"] < update["logical"]:
        pairs, tokens = visible_pairs_shared(rows)
        return pairs * update["executed"] / tokens
    return visible_pairs(rows) * update["logical"] / sum(len(row.token_ids) for row in rows)


def best_peer(lines: Sequence[Line]) -> Line | None:
    """The fastest setting of any peer whose losses pass."""
    passed = [one for one in lines if one.measured.peer and not one.gate]
    return max(passed, key=lambda one: one.logical, default=None)


def bars(name: str, lines: Sequence[Line], method: str) -> list[str]:
    """The bars of one set, each met or not met."""
    own = [one for one in lines if one.measured.tool == "luthier"]
    said = [_met(not one.gate, f"Luthier's losses in {one.measured.setting} are the plain twin's{one.gate and ': '}{one.gate}") for one in own]
    ours = max((one for one in own if not one.gate), key=lambda one: one.logical, default=None)
    if ours is None:
        return said
    best, bar = best_peer(lines), BARS.get((method, name))
    if best and bar:
        ratio = ours.logical / best.logical
        said.append(_met(ratio >= bar, f"{ratio:.2f}x {best.measured.tool} ({best.measured.setting}), asked: {bar:g}x"))
    said.append(_met(ours.utilisation >= LEAST_UTILISATION, f"utilisation {ours.utilisation:.0%}, asked: {LEAST_UTILISATION:.0%}"))
    if best:
        ours_gb, best_gb = ours.peak_bytes / 1e9, best.peak_bytes / 1e9
        said.append(_met(ours_gb <= best_gb, f"peak memory {ours_gb:.2f} GB, asked: at most the {best_gb:.2f} GB of {best.measured.tool}"))
    return said


def start_bars(ours_s: float, trl_s: float | None) -> list[str]:
    """The bar on the first micro-batch of `luthier train`."""
    said = [_met(ours_s <= LATEST_START_S, f"first micro-batch {ours_s:.1f} s after process start, asked: {LATEST_START_S:g} s")]
    if trl_s is not None:
        said.append(_met(ours_s < trl_s, f"first micro-batch {ours_s:.1f} s after process start, TRL's {trl_s:.1f} s"))
    return said


def _met(met: bool, what: str) -> str:
    return f"{'met' if met else 'NOT MET'}: {what}"


HEAD = [
    "tool",
    "setting",
    "logical tok/s",
    "executed",
    "trained",
    "padding",
    "rho",
    "utilisation",
    "peak GB",
    "first micro-batch s",
    "first update s",
]


def table(name: str, lines: Sequence[Line]) -> str:
    """One set as a Markdown table; a tool that fails the gate has no speed in it, but its reason below."""
    rows = [_cells(one) for one in lines]
    shown = [HEAD, ["---"] * len(HEAD), *rows]
    text = [f"### {WHAT[name][0].upper()}{WHAT[name][1:]}", "", *(f"| {' | '.join(cells)} |" for cells in shown)]
    failed = [f"- {one.measured.tool}, {one.measured.setting}: {one.gate}" for one in lines if one.gate]
    packed = [one for one in lines if one.measured.packed]
    notes = ["- packed: its updates hold other rows than the others', so the mean loss over all their trained tokens is compared"] if packed else []
    return "\n".join([*text, "", *failed, *notes])


def _cells(one: Line) -> list[str]:
    measured = one.measured
    name = [measured.tool, measured.setting]
    if one.gate:
        return [*name, *["-"] * (len(HEAD) - 2)]
    rates = [f"{value:,.0f}" for value in (one.logical, one.executed, one.trained)]
    shares = [f"{one.padding:.0%}", f"{one.rho:.2f}", f"{one.utilisation:.0%}", f"{one.peak_bytes / 1e9:.2f}"]
    return [*name, *rates, *shares, f"{one.first_micro_batch_s:.1f}", f"{one.first_update_s:.1f}"]
