"""What every `auto` of the training becomes, by the rules of hyperparameters.toml: a value, why, and where the rule comes from.

Each rule takes settings whose earlier ones are filled; plan/choose.py calls them in their order.
"""

import itertools
import math
from typing import Any

from luthier.config.adapters import alpha_of
from luthier.config.preference import BETA, ROWS
from luthier.config.settings import Settings
from luthier.models.facts import ModelFacts
from luthier.plan import in_words
from luthier.plan.cost import DataShape
from luthier.plan.limits import room_for_rows
from luthier.plan.machine import rules
from luthier.records import Machine, Resolved


def band(bands: list[list[Any]], rows: int) -> list[Any]:
    """The first of these bands (rows below, ...) that holds so many rows; 0 rows means any number."""
    return next(one for one in bands if rows < (one[0] or math.inf))


def in_rows(bands: list[list[Any]], rows: int) -> str:
    """The bounds of the band that holds so many rows, in words."""
    above = max((one[0] for one in bands if one[0] and one[0] <= rows), default=0)
    below = band(bands, rows)[0]
    if not above:
        return f"under {below:,} rows"
    return f"{above:,} to {below:,} rows" if below else f"{above:,} rows and more"


def max_length(settings: Settings, facts: ModelFacts) -> Resolved:
    """The longest row, in tokens. The only choice that is needed before rows can be counted in tokens."""
    asked = settings.data.max_length
    if asked != "auto":
        return Resolved("data.max_length", asked, "as given")
    most, room = rules()["max_length"]["most"], room_for_rows(settings, facts)
    context = f"the model's context less {settings.virtual_tokens:,} virtual tokens" if settings.virtual_tokens else "the model's context"
    why = f"{context} is {room:,}; auto takes at most {most:,}" if room > most else context
    return Resolved("data.max_length", min(room, most), why)


def learning_rate(facts: ModelFacts, method: str = "lora", optim: str = "adamw", objective: str = "sft") -> Resolved:
    """The peak rate for a model of this size: straight between the points of the method's table, in the logarithms, to one digit; times
    the optimizer's and the objective's factors."""
    table = rate_table(method)
    points = table["points"]
    size = min(max(facts.parameters, points[0][0]), points[-1][0])
    (small, high), (large, low) = next(pair for pair in itertools.pairwise(points) if size <= pair[1][0])
    share = math.log(size / small) / math.log(large / small)
    factor, of_objective = rules()["optimizer_rates"].get(optim, 1.0), rules()["objective_rates"].get(objective, 1.0)
    rate = factor * of_objective * high * (low / high) ** share
    why = f"usual for {method} on {in_words.count(facts.parameters)} parameters, lower for larger models"
    why += f"; times {factor} for {optim}" if factor != 1.0 else ""
    why += f"; times {of_objective} for {objective}" if of_objective != 1.0 else ""
    return Resolved("training.learning_rate", float(f"{rate:.0e}"), why, table.get("cited", "hyperparameters.toml"))


def rate_table(method: str) -> dict[str, Any]:
    """The rates of a method; LoRA's where it has none of its own."""
    table: dict[str, Any] = rules().get(f"learning_rate_{method}") or rules()["learning_rate"]
    return table


def epochs(settings: Settings, rows: DataShape) -> Resolved:
    """Passes over the rows: fewer with more rows, and few where rows judge."""
    table = rules()["num_train_epochs"]
    passes, why = band(table["bands"], rows.train_rows)[1], in_rows(table["bands"], rows.train_rows)
    if settings.objective in ROWS and passes > (most := table["most_of_preferences"]):
        passes, why = most, f"{why}, and at most {most} for preference tuning"
    why = "max_steps counts instead" if settings.training.max_steps else why
    return Resolved("training.num_train_epochs", float(passes), why, table["cited"])


def batch_size(settings: Settings, rows: DataShape) -> Resolved:
    """Examples per update: the task's number, less where the run would have too few updates."""
    table = rules()["batch_size"]
    usual, why = table["usual"], "usual"
    if (kind := batch_kind(settings)) != "usual":
        usual, why = table[kind], f"usual for {settings.plan.task}"
    if settings.training.max_steps:
        return Resolved("training.batch_size", min(usual, rows.train_rows), why, table["cited"])
    seen = rows.train_rows * float(settings.training.num_train_epochs)
    wanted = 2 ** math.floor(math.log2(max(1.0, seen / table["wanted_updates"])))
    most = max(1, math.floor(seen / table["least_updates"]))
    size = min(usual, max(wanted, table["fewest_examples"]), most)
    if size < usual:
        why = f"{usual} is {why}; fewer, so that {round(seen):,} examples make more updates ({table['wanted_updates']} where they can)"
    return Resolved("training.batch_size", size, why, table["cited"])


def batch_kind(settings: Settings) -> str:
    """Whether plan.task is a "hard" one, a "simple" one or a "usual" one, as the table of batches has them."""
    table = rules()["batch_size"]
    return next((kind for kind in ("hard", "simple") if settings.plan.task in table[f"{kind}_tasks"]), "usual")


def warmup(settings: Settings) -> Resolved:
    """Share of the updates in which the rate rises."""
    table = rules()["warmup_ratio"]
    kind = "preferences" if settings.objective in ROWS else "answers"
    why = "warmup_steps counts instead" if settings.training.warmup_steps is not None else f"usual for {settings.objective}"
    return Resolved("training.warmup_ratio", table[kind], why, table["cited"])


def rank(settings: Settings, facts: ModelFacts, rows: DataShape) -> Resolved:
    """The adapter's rank: by rows, and in the range of the domain where plan.domain names one; never more than the model's width."""
    table = rules()["lora_rank"]
    r, why = band(table["bands"], rows.train_rows)[1], in_rows(table["bands"], rows.train_rows)
    if domain := settings.plan.domain:
        least, most = table["domains"][domain]
        inside = min(max(r, least), most)
        counts = "which counts first" if inside != r else "which holds it"
        why = f"{why}: {r}; domain: {domain} takes {least} to {most}, {counts}"
        r = inside
    if r > facts.hidden:
        r, why = facts.hidden, f"{why}; the model's vectors have no more"
    return Resolved("lora.r", r, why, table["cited"])


def alpha(settings: Settings) -> Resolved:
    """The scale that goes with the rank."""
    r = settings.lora.numbers[0]
    return Resolved("lora.lora_alpha", alpha_of(r), f"goes with r = {r}", rules()["lora_alpha"]["cited"])


def dropout(settings: Settings, rows: DataShape) -> Resolved:
    """Dropout of the adapter's inputs: less with more rows, none where it would end the sharing of a prefix that pays or is asked for."""
    table, name = rules()["lora_dropout"], "lora.lora_dropout"
    shares, asked = settings.training.share_prefixes, "share_prefixes" in settings.training.model_fields_set
    pays = rows.shared_prefix_tokens * rows.examples >= table["shared_prefix_share"] * rows.train_tokens
    if shares and (pays or (asked and rows.shared_prefix_tokens)):
        return Resolved(name, 0.0, f"rows share {rows.shared_prefix_tokens:,} tokens, computed once; dropout would end that", "docs/performance.md")
    return Resolved(name, band(table["bands"], rows.train_rows)[1], in_rows(table["bands"], rows.train_rows), table["cited"])


def beta(settings: Settings) -> list[Resolved]:
    """preference.beta, where the objective has one."""
    usual = BETA.get(settings.objective)
    return [] if usual is None else [Resolved("preference.beta", usual, f"usual for {settings.objective}", "docs/preference.md")]


def precision(machine: Machine) -> Resolved:
    """The faster number format on this machine."""
    fp16 = f"{machine.fp16_gflops:,.0f} in fp16, " if machine.fp16_gflops else ""
    why = f"{machine.bf16_gflops:,.0f} GFLOP/s in bf16, {fp16}{machine.fp32_gflops:,.0f} in fp32 on {machine.name}"
    return Resolved("training.precision", machine.faster_precision, why)


def max_new_tokens(facts: ModelFacts, rows: DataShape) -> Resolved:
    """The longest answer that evaluation waits for, in tokens."""
    rule = rules()["max_new_tokens"]
    cap = max(rule["least"], math.ceil(rule["factor"] * rows.answer_p99))
    why = f"99 % of the training answers have at most {rows.answer_p99:,} tokens"
    return Resolved("evaluation.max_new_tokens", min(cap, facts.context), why)
