"""An update that is asked of a GPU without waiting for it: on a CPU it gives what the two calls give, and reads no number on its way."""

import math
from typing import Any

import pytest
import torch
from conftest_engine import open_tiny, ragged
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.engine import Engine, optimizers, probe, update, varlen
from luthier.engine.batches import lay_out
from luthier.engine.draws import Draws
from luthier.records import StepReport
from luthier.stopping import Stop
from luthier.train import loop
from luthier.train.loop import Course

COURSE = Course(updates=6, examples_seen=24, batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0, seed=0)


class NothingIsRead(TorchDispatchMode):
    """Fails where a number of a tensor is needed on the host, or decides about a shape."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func).split(".")[1]
        assert name not in {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal"}, f"{name} waits for the device"
        return func(*args, **(kwargs or {}))


def weights(engine: Engine) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in engine.masters.weights.items()}


def test_it_learns_what_the_two_calls_learn(tiny_model: Any) -> None:
    one, other = open_tiny(tiny_model, max_grad_norm=0.5), open_tiny(tiny_model, max_grad_norm=0.5)
    for seed in range(3):
        examples = ragged(seed=seed, rows=6, prefix=30)
        loss, norm = one.forward_backward(examples).loss, one.optimizer_step(1e-2)
        measured, late_norm = other.send_update(examples, 1e-2)()
        assert measured.loss == pytest.approx(loss, rel=1e-6)
        assert late_norm == pytest.approx(norm, rel=1e-5)
    found, wanted = weights(other), weights(one)
    for name, weight in wanted.items():
        torch.testing.assert_close(found[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_the_kernel_itself_leaves_out_what_is_not_finite(bad: str, tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_tiny(tiny_model)
    examples = ragged(seed=0, rows=4)
    engine.send_update(examples, 1e-2)
    before, steps = weights(engine), [float(state["step"]) for state in engine.optimizer.state.values()]
    honest = update.run_update

    def poisoned(model: Any, head: Any, step: Any, sums: update.Sums, *rest: Any) -> None:
        honest(model, head, step, sums, *rest)
        if bad == "loss":
            sums.total = sums.total + math.inf
        else:
            engine.trained_parameters[0].grad.fill_(math.nan)  # type: ignore[union-attr]

    monkeypatch.setattr(update, "run_update", poisoned)
    measured, norm = engine.send_update(examples, 1e-2)()
    assert not (math.isfinite(measured.loss) and math.isfinite(norm))
    assert all(torch.equal(weight, before[name]) for name, weight in weights(engine).items())
    assert [float(state["step"]) for state in engine.optimizer.state.values()] == steps
    monkeypatch.undo()
    engine.send_update(examples, 1e-2)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(engine).items())


def test_no_number_of_an_update_is_read_on_its_way(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor on torch's meta device has no numbers at all, and does not mix with one of the host: so does not a GPU's."""
    monkeypatch.setattr(varlen, "supports", lambda *_: True)
    monkeypatch.setattr(probe, "attention_kernel", lambda device: lambda q, k, v, *_: q + k.sum() + v.sum())
    engine = open_tiny(tiny_model)
    step = lay_out(ragged(seed=0, rows=8, prefix=40), micro_batch_tokens=100, share_prefixes=True)
    assert step.passes
    engine.model.to("meta").train()
    engine.head.buffers.clear()
    update.run_update(engine.model, engine.head, step, update.Sums(torch.zeros((), device="meta")), 1.0, Draws())
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in engine.trained_parameters)


def test_clipping_and_the_optimizer_read_no_number() -> None:
    parameters = [torch.nn.Parameter(torch.randn(5, 3)) for _ in range(3)]
    optimizer = optimizers.OPTIMIZERS["adamw"](parameters, {})
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    with NothingIsRead():  # type: ignore[no-untyped-call]
        norm = optimizers.step_unread(optimizer, 1e-2, 0.1, torch.tensor(1.0))
        with pytest.raises(AssertionError, match="waits for the device"):
            float(norm)


def test_an_update_is_told_while_the_next_one_runs(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = ragged(seed=1, rows=10)
    early: list[StepReport] = []
    loop.fit(open_tiny(tiny_model), examples, COURSE, [early.append], Stop())
    engine = open_tiny(tiny_model)
    happened: list[str] = []
    honest = engine.send_update

    def sent(rows: Any, rate: float) -> Any:
        happened.append("sent")
        return honest(rows, rate)

    monkeypatch.setattr(engine, "send_update", sent)
    monkeypatch.setattr(Engine, "reads_late", True)
    late: list[StepReport] = []
    watchers = [late.append, lambda report: happened.append(f"told {report.step}")]
    assert loop.fit(engine, examples, COURSE, watchers, Stop(), looks_at_weights=lambda step: step == 4) == 6
    assert happened == ["sent", "sent", "told 1", "sent", "told 2", "sent", "told 3", "told 4", "sent", "sent", "told 5", "told 6"]
    assert [report.step for report in late] == [1, 2, 3, 4, 5, 6]
    assert [report.loss for report in late] == pytest.approx([report.loss for report in early], rel=1e-4)
    assert all(report.seconds > 0 for report in late)


def test_a_signal_leaves_no_update_untold(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Engine, "reads_late", True)
    told: list[int] = []
    stop = Stop()

    def watch(report: StepReport) -> None:
        told.append(report.step)
        stop.signal = 2

    done = loop.fit(open_tiny(tiny_model), ragged(seed=1, rows=10), COURSE, [watch], stop, looks_at_weights=lambda step: False)
    assert told == list(range(1, done + 1)) == [1, 2]
