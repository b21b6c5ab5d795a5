"""Can these settings learn at all? A few rows are learned by heart, and then asked for."""

from typing import Any

from luthier.data.tokenize import prompt_ids
from luthier.recipes.proofs.bench import ANSWER_TOKENS, Bench, failed, passed
from luthier.records import Conversation, Proof, StepReport
from luthier.stopping import Stop
from luthier.train import loop

ROWS = 16
MOST_UPDATES = 60
# Of the run's own rate: a few rows are learned by heart sooner with a higher one.
RATE_FACTOR, HIGHEST_RATE = 4.0, 0.05
ASKED = 4
# Below this loss, in nats a token, most greedy answers are those of the rows.
BY_HEART = 0.05
# Which part of its first value the loss must fall below: some methods have too few numbers to learn much by heart.
BARS = {
    # what is trained                                 of the first loss
    "little": 0.95,
    "much": 0.5,
}
LITTLE = {"prompt", "p_tuning", "prefix", "ia3", "peft"}


def overfits(bench: Bench) -> Proof:
    """The loss of 16 rows falls below a bar in bounded time, by the real loop; and of chats the answers come out again."""
    bench.use(bench.plan)
    settings = bench.plan.settings
    rows = bench.shortest[:ROWS]
    rate = min(float(settings.training.learning_rate) * RATE_FACTOR, max(HIGHEST_RATE, float(settings.training.learning_rate)))
    losses = _learn(bench, rows, rate)
    bench.learned["sources"] = [row.source for row in rows]
    bar = BARS["little" if settings.method in LITTLE else "much"]
    share = losses[-1] / losses[0] if losses[0] else float("inf")
    numbers: dict[str, object] = {
        "rows": len(rows),
        "updates": len(losses),
        "learning_rate": rate,
        "first": losses[0],
        "last": losses[-1],
        "bar": bar,
    }
    how = f"{len(rows)} rows, {len(losses)} updates at {rate:.1e} (the run's rate is {float(settings.training.learning_rate):.1e})"
    said = f"{how}: loss {losses[0]:.3f} -> {losses[-1]:.3f}"
    if not share < bar:
        step = "another training.learning_rate (luthier plan shows the usual one), or more capacity (lora.r)"
        return failed(f"{said}, which is not below {bar:.0%} of its first value", step, **numbers)
    if settings.objective != "sft" or losses[-1] > BY_HEART:
        return passed(said, **numbers)
    return _asked(bench, said, numbers)


def _learn(bench: Bench, rows: list[Any], rate: float) -> list[float]:
    """The loss at every update, until it is low enough or there were enough of them."""
    losses: list[float] = []
    stop = Stop()

    def watch(report: StepReport) -> None:
        losses.append(report.loss)
        if report.loss < BY_HEART and bench.plan.settings.objective == "sft":
            stop.signal = 1

    course = loop.Course(
        updates=MOST_UPDATES,
        examples_seen=MOST_UPDATES * len(rows),
        batch_size=len(rows),
        learning_rate=rate,
        lr_scheduler_type="constant",
        warmup_steps=0,
        seed=bench.plan.settings.seed,
    )
    loop.fit(bench.engine, rows, course, [watch], stop, forward_backward=bench.task.forward_backward)
    return losses or [float("nan")]


def _asked(bench: Bench, said: str, numbers: dict[str, object]) -> Proof:
    """The rows that were learned by heart, asked as luthier chat asks."""
    by_source = {row.source: row for row in bench.ready.prepared.rows.train}
    rows = [by_source[source] for source in bench.learned["sources"] if source in by_source]
    asked = [row for row in rows if row.prompt and _is_short(row, bench)][:ASKED]
    if not asked:
        return passed(said, **numbers)
    prompts = [prompt_ids(row.prompt, bench.ready.tokenizer, row.tools) for row in asked]
    answers = bench.engine.answer(prompts, max_new_tokens=ANSWER_TOKENS)
    right = [answer.strip() == row.answer.strip() for answer, row in zip(answers, asked, strict=True)]
    numbers |= {"asked": len(asked), "answered": sum(right)}
    said += f"; {sum(right)} of {len(asked)} answers come out again"
    if sum(right) * 2 >= len(asked):
        return passed(said, **numbers)
    place = right.index(False)
    step = "what is trained is not what is asked for: look at the checks of masks and of chat's tokens"
    return failed(f"{said}; {asked[place].source} gives {answers[place][:60]!r} for {asked[place].answer[:60]!r}", step, **numbers)


def _is_short(row: Conversation, bench: Bench) -> bool:
    turn = row.turns[-1]
    answer = bench.ready.tokenizer(turn.content, add_special_tokens=False)["input_ids"]
    return not turn.extra and len(answer) < ANSWER_TOKENS
