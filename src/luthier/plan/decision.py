"""Whether to fine-tune at all, and by which method: by rows, memory, distance from pretraining, and what a mistake costs."""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.config.methods import BLOCKS, METHODS
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import cost, in_words, levers, wishes
from luthier.plan.choose import Plan, memory_choices
from luthier.plan.cost import DataShape
from luthier.plan.machine import rules as hyperparameter_rules
from luthier.records import Machine

# As good as LoRA in what is decided here: what it trains besides is small.
ALIKE = {"dora": "lora"}
FIRST = {
    # what comes first   in words
    "tune":     "fine-tune",
    "prompt":   "a prompt with examples first",
    "retrieve": "retrieval first",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do first (tune, prompt or retrieve), the method for the tuning ("": none fits), why, and the override that takes it.

    `needs_bytes`: what each compared method takes at its peak on this machine. `override` is "" where the settings ask for it already.
    """

    first: str
    method: str
    reasons: tuple[str, ...]
    override: str
    needs_bytes: dict[str, int]

    def lines(self) -> list[str]:
        """The decision for people."""
        how = f"method: {self.method}" if self.method else "no method fits: luthier models choose names smaller models"
        return [f"decision: {FIRST[self.first]}, {'then ' if self.first != 'tune' else ''}{how}", *(f"  {reason}" for reason in self.reasons)]

    def command(self, config: Path, overrides: Sequence[str], given: Mapping[str, str]) -> str:
        """The call that plans the method with the same overrides, and what must go out of the settings file for it; "" where it is planned.

        `given`: the settings that were given, as a Config has them. What only other methods read would be refused beside this one.
        """
        if not self.override:
            return ""
        unread = BLOCKS - set(METHODS[self.method].blocks)
        kept = [one for one in overrides if one.partition("=")[0] != "method" and one.partition(".")[0] not in unread]
        blocks = sorted({name.partition(".")[0] for name, place in given.items() if not place.startswith("command line")} & unread)
        call = " ".join(["luthier", "plan", str(config), *map(shlex.quote, [*kept, self.override])])
        return call + (f"   (and take the block {', '.join(f'{block}:' for block in blocks)} out)" if blocks else "")


def decide(plan: Plan, held_out_rows: int) -> Decision:
    """The decision for a plan's settings, model, rows and machine. It changes nothing: the settings' own method is what is planned."""
    settings, rows = plan.settings, plan.rows
    first, why_first = _first(settings, rows.train_rows)
    order, why_order = _order(settings, rows.train_rows)
    needs = {method: _need(settings, method, plan.facts, plan.machine, rows) for method in levers.COMPARED_METHODS}
    method = next((one for one in order if needs[one][1]), "")
    room = cost.memory_limit(settings, plan.machine) * (cost.LIMITED_SHARE if settings.max_memory else cost.USABLE_SHARE)
    sizes = ", ".join(f"{name} {in_words.size(size)}" for name, (size, _) in needs.items())
    reasons = [why_first, why_order, f"memory: {sizes}; {in_words.size(room)} may be taken{_of_memory(method, order)}", _of_domain(settings)]
    reasons += _of_mistakes(settings, method, held_out_rows)
    asked = ALIKE.get(settings.method, settings.method)
    override = f"method={method}" if method and asked != method and asked in levers.COMPARED_METHODS else ""
    if asked not in levers.COMPARED_METHODS:
        reasons.append(f"method: {settings.method} is planned as the settings ask (docs/methods.md: when it is the better one)")
    elif override:
        reasons.append(f"method: {settings.method} is planned, as the settings ask{'' if plan.fits else ', and does not fit'}")
    return Decision(first, method, tuple(reason for reason in reasons if reason), override, {name: size for name, (size, _) in needs.items()})


def _first(settings: Settings, rows: int) -> tuple[str, str]:
    few = wishes.rules()["usual"]["few_rows"]
    if settings.plan.facts == "changing" or settings.plan.task == "rag":
        why = "plan.facts: changing" if settings.plan.facts == "changing" else "plan.task: rag"
        return "retrieve", f"{why}: what is tuned in stays as it was on that day; look facts up, and tune for the form of the answer"
    if rows < few:
        return "prompt", f"{rows} rows, fewer than {few}: put some into a prompt and count how often it is right (evaluation.shots: 5)"
    return "tune", f"{rows:,} rows are enough to learn from; the base with examples in its prompt is the bar (evaluation.shots: 5)"


def _order(settings: Settings, rows: int) -> tuple[list[str], str]:
    """The methods from the first to try to the last, and why."""
    full_rows, far_rows = wishes.rules()["usual"]["full_rows"], wishes.rules()["domain"]["far_base_rows"]
    adapters = ["lora", "qlora"]
    if settings.plan.domain == "style":
        return adapters, "domain: style: an adapter of low rank holds it, however many rows there are"
    if settings.plan.mistakes == "costly":
        full_rows //= 2
    if settings.plan.domain == "far" and rows >= far_rows:
        return ["full", *adapters], f"domain: far, with {far_rows:,} rows and more: training every weight is considered first"
    if rows >= full_rows:
        return ["full", *adapters], f"{full_rows:,} rows and more: training every weight is considered first, if they are good"
    return adapters, f"fewer than {full_rows:,} rows: an adapter learns as well as training every weight, for a fraction of the memory"


def _need(settings: Settings, method: str, facts: ModelFacts, machine: Machine, rows: DataShape) -> tuple[int, bool]:
    """Bytes at the peak of the same run with another method, cut as it would be here, and whether that fits."""
    other = cost.changed(levers.with_method(settings, method), {"training.micro_batch_tokens": "auto", "training.gradient_checkpointing": "auto"})
    other = cost.changed(other, {choice.name: choice.value for choice in memory_choices(other, facts, machine, rows)})
    return sum(cost.memory_parts(other, facts, machine, rows).values()), cost.fits(other, facts, machine, rows)


def _of_memory(method: str, order: list[str]) -> str:
    if not method:
        return ": none of them fits"
    if method == order[0]:
        return f": {method} fits"
    return f": {' and '.join(order[: order.index(method)])} would not fit, {method} does"


def _of_domain(settings: Settings) -> str:
    if settings.plan.domain is None:
        return "plan.domain is not said (style, near, far): the rank goes by the rows alone"
    least, most = hyperparameter_rules()["lora_rank"]["domains"][settings.plan.domain]
    or_full = ", or full" if settings.plan.domain == "far" else ""
    return f"domain: {settings.plan.domain}: rank {least} to {most}{or_full}, which counts before the number of rows"


def _of_mistakes(settings: Settings, method: str, held_out_rows: int) -> list[str]:
    """What costly mistakes ask for besides."""
    if settings.plan.mistakes != "costly":
        return []
    if not held_out_rows:
        return ["mistakes: costly, and no rows are held out (data.eval): nobody would know how often it is wrong"]
    known = f"mistakes: costly: {held_out_rows:,} held-out rows tell a share of right answers to about {100 / math.sqrt(held_out_rows):.0f} points"
    reasons = [known + ("" if held_out_rows >= 400 else "; 400 to about 5")]
    return reasons + (["mistakes: costly: 4 bits round the base; compare with method: lora on a larger machine"] if method == "qlora" else [])
