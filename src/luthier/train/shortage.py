"""What a run says and does where its memory turns out to be less than the plan took it for."""

from collections.abc import Iterator
from contextlib import contextmanager

from luthier.errors import OutOfMemory, is_shortage
from luthier.plan import levers
from luthier.plan.choose import Plan
from luthier.reporting import Reporter
from luthier.run_folder import RunFolder
from luthier.train.watchers import tell

# Of the changes that would help, so many are named.
LEVERS_NAMED = 3


@contextmanager
def levers_named(plan: Plan) -> Iterator[None]:
    """Memory that is not enough in here ends the run (exit code 5) with the changes that help most, and what each of them would need."""
    try:
        yield
    except OutOfMemory as error:
        raise OutOfMemory(error.problem, where=error.where, next_step=next_step(plan)) from error
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
        asked = str(error).strip().splitlines()[-1:]
        problem = f"the memory of {plan.machine.name} is not enough ({''.join(asked)[:160]})"
        raise OutOfMemory(problem, where=plan.settings.model, next_step=next_step(plan)) from error


def next_step(plan: Plan) -> str:
    """The strongest changes in numbers: what the run would need with each, and what it needs with its smallest micro-batches."""
    least = sum(plan.with_budget(1).memory_bytes.values())
    found = [f"{text} (about {cost / 1e9:.3g} GB)" for text, cost in levers.levers(plan.settings, plan.facts, plan.machine, plan.rows)[:LEVERS_NAMED]]
    return f"{', '.join([*found, 'a smaller model'])}; as it is, the run needs about {least / 1e9:.3g} GB for its longest row alone"


def tell_smaller(run: RunFolder, reporter: Reporter, plan: Plan, step: int, before: int, now: int) -> None:
    """Once for each time that the cut had to be made smaller: what it is now, and what is planned with it."""
    run.add_smaller_cut(step, before, now)
    planned = plan.with_budget(now)
    size, old = (sum(one.memory_bytes.values()) / 1e9 for one in (planned, plan.with_budget(before)))
    tell(
        run,
        reporter,
        f"step {step}: the memory was not enough for micro-batches of {before:,} tokens; the same work was run again with {now:,}, which stay "
        f"(the same result, a little slower; about {size:.3g} GB planned now, {old:.3g} GB before)",
    )
