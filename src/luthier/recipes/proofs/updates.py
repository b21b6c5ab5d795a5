"""One update, computed in several ways: together and one row after the other, cut otherwise, with shared beginnings and without."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from luthier.engine import batches
from luthier.recipes.proofs.bench import FAILED, Bench, NotHere, failed, passed
from luthier.records import Judged, Proof, TokenizedExample

# The share of the whole gradient's norm that is added to a tensor's before a difference is divided by it: of nothing, rounding is all.
FLOOR = 0.1
# Of a loss below this, in nats, rounding is all.
LEAST_LOSS = 1e-2
WHOLE = 10**9  # more tokens than any update has
REPORT = "please report it with verify.json and the versions of luthier doctor"
# Rows of an update in which something may be shared, or that is worth being run side by side.
SHARING_ROWS = (6, 12, 24, 48)
# Updates in which every trained tensor must have had a gradient once.
UPDATES_WITH_GRADIENT = 2


@dataclass(frozen=True, slots=True)
class Measured:
    """An update's loss in nats, and its gradients by name."""

    loss: float
    gradients: dict[str, Tensor]


def measured(bench: Bench, rows: Sequence[Any] | None = None) -> Measured:
    """The update (of `rows`, or bench.update) as the training loop computes it now; the engine's gradients are forgotten."""
    loss = bench.measure(rows or bench.update)
    found = {name: weight.grad.detach().clone() for name, weight in bench.engine.masters.weights.items() if weight.grad is not None}
    bench.engine.forget_gradients()
    return Measured(loss, found)


def own(bench: Bench) -> Measured:
    """The update as the run's settings have it, measured once for all checks that compare with it."""
    if "own" not in bench.learned:
        bench.learned["own"] = measured(bench)
    found: Measured = bench.learned["own"]
    return found


def packed_is_plain(bench: Bench) -> Proof:
    """Rows that run together against the model's own forward, one row at a time, with full logits (engine/reference.py)."""
    bench.use(bench.exact)
    engine = bench.engine
    if engine.plain_reason:
        raise NotHere(f"rows run one at a time already: {engine.plain_reason}")
    with without_dropout(engine.model) as drops:
        fast = measured(bench) if drops else own(bench)
        engine.go_plain("luthier verify compares")
        plain = measured(bench)
    said = f"{len(bench.update)} rows together against one by one through Transformers"
    proof = compared(bench, {said: fast}, plain, "training.attn_implementation: sdpa trains plainly; " + REPORT)
    bench.drop_engine()
    return proof


def accumulated(bench: Bench) -> Proof:
    """One micro-batch, three, and as many as there are rows, one after the other; and side by side, where the run does so."""
    _require_fast(bench)
    beside = _side_by_side(bench)
    if beside and beside.status == FAILED:
        return beside
    as_run = own(bench) if _micro_batches(bench, bench.engine.micro_batch_tokens) == 1 else None
    with setting(bench.engine, "lanes", None):
        whole = as_run or _with_budget(bench, WHOLE)
        budget = next((budget for budget in _budgets(bench) if _micro_batches(bench, budget) == 3), None)
        several = {f"{_micro_batches(bench, 1)} micro-batches": _with_budget(bench, 1)}
        if budget:
            several["3"] = _with_budget(bench, budget)
    proof = compared(bench, several, whole, f"training.micro_batch_tokens: {WHOLE} cuts nothing; {REPORT}", "1 micro-batch")
    return (
        replace(proof, evidence=f"{proof.evidence}; {beside.evidence}", numbers={**proof.numbers, "side_by_side": beside.numbers})
        if beside
        else proof
    )


def _side_by_side(bench: Bench) -> Proof | None:
    """Micro-batches that run at once against the same ones after each other; None where no update runs so."""
    engine = bench.engine
    if engine.lanes is None:
        return None
    for rows in (bench.update, *(bench.shortest[:count] for count in SHARING_ROWS)):
        step = _step(bench, rows, engine.micro_batch_tokens)
        if step.lanes > 1:
            at_once = own(bench) if rows == bench.update else measured(bench, rows)
            with setting(engine, "lanes", None):
                by_turns = measured(bench, rows)
            said = {f"{len(step.micro_batches)} micro-batches of {len(rows)} rows side by side": at_once}
            return compared(bench, said, by_turns, f"training.side_by_side: false; {REPORT}", "one after the other")
    return None


def other_budget(bench: Bench) -> Proof:
    """The budget of the run against the largest smaller one that cuts otherwise: what is done where the memory runs out."""
    _require_fast(bench)
    budget = bench.engine.micro_batch_tokens
    before = _micro_batches(bench, budget)
    smaller = next((other for other in reversed(_budgets(bench)) if other < budget and _micro_batches(bench, other) > before), None)
    if smaller is None:
        raise NotHere("no smaller budget cuts this update otherwise")
    found = {f"micro_batch_tokens {smaller}": _with_budget(bench, smaller)}
    return compared(bench, found, own(bench), f"training.micro_batch_tokens: {budget}, written out; {REPORT}", str(budget))


def prefix_sharing(bench: Bench) -> Proof:
    """Beginnings that rows share, computed once, against every row by itself."""
    _require_fast(bench)
    engine = bench.engine
    if not engine.share_prefixes:
        dropped = "; with dropout or noise nothing is shared" if bench.plan.settings.training.share_prefixes else ""
        raise NotHere(f"share_prefixes is off{dropped}")
    rows, sharing = _rows_that_share(bench)
    on = own(bench) if rows == bench.update else measured(bench, rows)
    with setting(engine, "share_prefixes", False):
        off = measured(bench, rows)
    found = {f"{len(rows)} rows, shared: {sharing}": on}
    return compared(bench, found, off, f"training.share_prefixes: false; {REPORT}", "every row by itself")


def gradients_arrive(bench: Bench) -> Proof:
    """Every trained tensor has a gradient that is not zero, an update changes it, and the frozen weights stay as they are."""
    bench.use(bench.exact)
    engine = bench.engine
    frozen = {name: checksum(tensor) for name, tensor in _frozen(engine.model)}
    before = {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}
    silent = set(before)
    bench.learned.pop("own", None)
    for number in range(UPDATES_WITH_GRADIENT):
        bench.measure(bench.others, number)
        silent -= {name for name in silent if (grad := engine.masters.weights[name].grad) is not None and bool(grad.any())}
        engine.optimizer_step(float(bench.plan.settings.training.learning_rate))
    still = [name for name, weight in engine.masters.weights.items() if torch.equal(weight, before[name])]
    changed = [name for name, tensor in _frozen(engine.model) if frozen.get(name) != checksum(tensor)]
    counts = {"trained": len(before), "frozen": len(frozen)}
    if changed:
        return failed(f"{len(changed)} frozen tensors were changed, {changed[0]} first", REPORT, **counts)
    if silent or still:
        names = sorted(silent) or still
        what = "have no gradient" if silent else "are not changed by an update"
        step = "take them out of what is trained (lora.target_modules, freeze), or check that the rows reach them"
        return failed(f"{len(names)} of {len(before)} trained tensors {what}, {names[0]} first", step, **counts, names=names[:20])
    return passed(f"all {len(before):,} trained tensors have a gradient and move; {len(frozen):,} frozen ones stayed as they were", **counts)


def compared(bench: Bench, found: dict[str, Measured], right: Measured, next_step: str, beside: str = "") -> Proof:
    """One or more ways to compute the same update, each against `right`."""
    allowed = bench.tolerance
    losses = {name: abs(one.loss - right.loss) / max(abs(right.loss), LEAST_LOSS) for name, one in found.items()}
    gradients = {name: apart(one.gradients, right.gradients) for name, one in found.items()}
    loss, (gradient, where) = max(losses.values()), max(gradients.values())
    what = f"{' and '.join(found)}{f' against {beside}' if beside else ''}, in {bench.precision}: loss {right.loss:.6f}"
    apart_by = f"{loss:.1e} apart, gradients {gradient:.1e}"
    numbers = {"loss_difference": loss, "gradient_difference": gradient, "allowed": {"loss": allowed.loss, "gradient": allowed.gradient}}
    if loss <= allowed.loss and gradient <= allowed.gradient:  # a NaN is not
        return passed(f"{what}, {apart_by}", **numbers)
    worst = f" in {where}" if gradient > allowed.gradient or gradient != gradient else ""
    return failed(f"{what}, {apart_by}{worst} (allowed {allowed.loss:.0e} and {allowed.gradient:.0e}: {allowed.why})", next_step, **numbers)


def apart(one: dict[str, Tensor], right: dict[str, Tensor]) -> tuple[float, str]:
    """The largest relative difference of a tensor's gradient, and its name; infinite where a gradient is missing."""
    if one.keys() != right.keys():
        return float("inf"), min(one.keys() ^ right.keys())
    norms = {name: float(tensor.norm()) for name, tensor in right.items()}
    total = sum(norm * norm for norm in norms.values()) ** 0.5
    differences = ((float((one[name] - tensor).norm()) / max(norms[name] + FLOOR * total, 1e-30), name) for name, tensor in right.items())
    return max(((value if value == value else float("inf"), name) for value, name in differences), default=(0.0, ""))


@contextmanager
def setting(thing: Any, name: str, value: object) -> Iterator[None]:
    """An attribute with another value for a while."""
    before = getattr(thing, name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        setattr(thing, name, before)


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[bool]:
    """Transformers' own forward draws other masks than ours, so both are compared without any. Gives whether there was some."""
    dropping = [(module, module.p) for module in model.modules() if isinstance(module, nn.Dropout) and module.p]
    for module, _ in dropping:
        module.p = 0.0
    try:
        yield bool(dropping)
    finally:
        for module, share in dropping:
            module.p = share


def checksum(tensor: Tensor) -> tuple[int, int]:
    """Two sums over the bits of a tensor, of which any change of a value changes one."""
    flat = tensor.detach().contiguous().flatten()
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[flat.element_size()]
    bits = flat.view(size) if flat.dtype != size else flat
    return int(bits.sum(dtype=torch.int64)), int(bits[::2].sum(dtype=torch.int64))


def _frozen(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return ((name, parameter) for name, parameter in model.named_parameters() if not parameter.requires_grad)


def _require_fast(bench: Bench) -> None:
    bench.use(bench.exact)
    if bench.engine.plain_reason:
        raise NotHere(f"rows run one at a time, uncut: {bench.engine.plain_reason}")


def _with_budget(bench: Bench, budget: int) -> Measured:
    with setting(bench.engine, "micro_batch_tokens", budget):
        return measured(bench)


def _rows_that_share(bench: Bench) -> tuple[list[Any], str]:
    """As many of the shortest rows as it takes until sharing pays, and what they share; none is run for that."""
    rows = bench.shortest
    for count in SHARING_ROWS:
        examples, together = _examples(rows[:count])
        step = batches.lay_out(examples, micro_batch_tokens=WHOLE, share_prefixes=True, together=together)
        if step.passes:
            return rows[:count], step.sharing
    raise NotHere(f"{min(len(rows), max(SHARING_ROWS))} rows share no beginning that would pay")


def _step(bench: Bench, rows: Sequence[TokenizedExample | Judged], budget: int) -> batches.Step:
    """An update as the engine would lay it out."""
    examples, together = _examples(rows)
    return bench.engine.lay_out(examples, together, budget, learns=True)


def _micro_batches(bench: Bench, budget: int) -> int:
    """Into how many micro-batches the update is cut."""
    return len(_step(bench, bench.update, budget).micro_batches)


def _budgets(bench: Bench) -> list[int]:
    """Budgets up to the tokens of the update, ascending."""
    total = sum(row.tokens for row in bench.update)
    return [max(1, total * part // 24) for part in range(1, 25)]


def _examples(rows: Sequence[TokenizedExample | Judged]) -> tuple[list[TokenizedExample], list[list[int]] | None]:
    """The examples of rows, and which must stay together."""
    if all(isinstance(row, TokenizedExample) for row in rows):
        return list(rows), None  # type: ignore[arg-type]
    groups: list[list[int]] = []
    examples: list[TokenizedExample] = []
    for row in rows:
        own = row.examples if isinstance(row, Judged) else (row,)
        groups.append(list(range(len(examples), len(examples) + len(own))))
        examples += own
    return examples, groups
