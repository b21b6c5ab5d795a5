"""One update after the other; everyone is told, and a number that is none stops the run."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch

from luthier.engine import Engine
from luthier.errors import LuthierError, NotFiniteError
from luthier.records import StepReport, TokenizedExample, UpdateLoss
from luthier.run_folder import RunFolder
from luthier.stopping import stopping_on_signals
from luthier.train import checkpoint, loop
from luthier.train.checkpoint import Place
from luthier.train.loop import Course, Stop

COURSE = Course(updates=5, examples_seen=20, batch_size=4, learning_rate=1e-2, lr_scheduler_type="constant", warmup_steps=0, seed=0)


def fit(engine: Engine, examples: list[TokenizedExample], *watchers: loop.Watcher, stop: Stop | None = None) -> int:
    return loop.fit(engine, examples, COURSE, list(watchers), stop or Stop())


def test_every_watcher_sees_every_update(engine: Engine, examples: list[TokenizedExample]) -> None:
    one: list[StepReport] = []
    other: list[StepReport] = []
    assert fit(engine, examples, one.append, other.append) == 5
    assert one == other
    assert [report.step for report in one] == [1, 2, 3, 4, 5]
    assert [report.epoch for report in one] == [0.4, 0.8, 1.2, 1.6, 2.0]
    assert {report.learning_rate for report in one} == {1e-2}
    assert one[-1].loss < one[0].loss
    assert all(report.trained_tokens < report.logical_tokens and report.peak_bytes > 10_000_000 for report in one)


def test_a_loss_that_is_no_number_names_the_rows_and_leaves_no_checkpoint(engine: Engine, examples: list[TokenizedExample], run: RunFolder) -> None:
    def poison(report: StepReport) -> None:
        if report.step == 2:
            with torch.no_grad():
                engine.trained_parameters[0].fill_(float("nan"))

    def save(report: StepReport) -> None:
        checkpoint.write(run, checkpoint.take(engine, Place(report.step, "d", 0, "fp32")))

    with pytest.raises(NotFiniteError) as caught:
        fit(engine, examples, save, poison)
    rows = [examples[place].source for place in loop.order.update_rows(10, 4, 0, 4, 20)]
    assert caught.value.where == f"step 5 (rows {', '.join(map(str, rows))})"
    assert "the loss is nan and the gradient norm nan: 3 updates in a row" in caught.value.problem
    assert caught.value.exit_code == 6
    assert [path.name for path in checkpoint.list_checkpoints(run)] == ["step-000001", "step-000002"]


def test_nothing_of_an_update_that_is_not_finite_is_kept(engine: Engine, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch) -> None:
    before = [parameter.detach().clone() for parameter in engine.trained_parameters]
    honest = engine.forward_backward

    def exploding(rows: list[TokenizedExample], *, row_losses: bool) -> object:
        measured = honest(rows)
        next(parameter for parameter in engine.trained_parameters if parameter.grad is not None).grad.fill_(float("inf"))  # type: ignore[union-attr]
        return measured

    monkeypatch.setattr(engine, "forward_backward", exploding)
    with pytest.raises(NotFiniteError, match="the gradient norm inf"):
        fit(engine, examples)
    assert all(torch.equal(one, other) for one, other in zip(before, engine.trained_parameters, strict=True))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_one_update_that_is_not_finite_is_skipped_and_named(
    bad: str, engine: Engine, examples: list[TokenizedExample], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = engine.forward_backward
    calls: list[list[TokenizedExample]] = []
    weights: list[torch.Tensor] = []

    def sometimes_bad(rows: list[TokenizedExample], *, row_losses: bool) -> UpdateLoss:
        calls.append(rows)
        measured = honest(rows)
        weights.append(engine.trained_parameters[0].detach().clone())
        if len(calls) != 3:
            return measured
        if bad == "loss":
            return dataclasses.replace(measured, loss=float("inf"))
        next(parameter for parameter in engine.trained_parameters if parameter.grad is not None).grad.fill_(float("nan"))  # type: ignore[union-attr]
        return measured

    monkeypatch.setattr(engine, "forward_backward", sometimes_bad)
    seen: list[StepReport] = []
    skipped: list[loop.Skipped] = []
    assert loop.fit(engine, examples, COURSE, [seen.append], Stop(), on_skip=skipped.append) == 5
    assert [report.step for report in seen] == [1, 2, 4, 5]
    assert [(one.step, one.rows) for one in skipped] == [(3, [row.source for row in calls[2]])]
    assert str(skipped[0]).startswith("step 3 is skipped: the loss is ")
    assert torch.equal(weights[2], weights[3])
    assert not torch.equal(weights[3], weights[4])


def test_every_update_draws_from_a_seed_of_its_own() -> None:
    seeds = {loop.update_seed(seed, update) for seed in range(20) for update in range(200)}
    assert len(seeds) == 4000
    assert loop.update_seed(3, 4) == loop.update_seed(3, 4)
    torch.manual_seed(max(seeds))  # in torch's range


def test_a_signal_ends_the_run_after_the_update_at_hand(engine: Engine, examples: list[TokenizedExample]) -> None:
    seen: list[int] = []

    def interrupt(report: StepReport) -> None:
        seen.append(report.step)
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with stopping_on_signals() as stop:
        assert fit(engine, examples, interrupt, stop=stop) == 2
    assert stop.signal == signal.SIGINT
    assert seen == [1, 2]


def test_a_second_signal_ends_it_at_once_and_the_old_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stopping_on_signals() as stop, pytest.raises(KeyboardInterrupt):  # noqa: PT012
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_model_in_which_nothing_is_trained_is_refused(engine: Engine, examples: list[TokenizedExample]) -> None:
    engine.model.requires_grad_(False)
    with pytest.raises(LuthierError, match="nothing in this model is trained"):
        fit(engine, examples)


def test_peak_memory_is_this_process_own_and_not_that_of_the_one_that_started_it() -> None:
    own = "from luthier.train.loop import peak_bytes; print(peak_bytes())"
    parent = f"import subprocess, sys; held = b'1' * 2_500_000_000; subprocess.run([sys.executable, '-c', {own!r}], check=True)"
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, check=True)
    assert 50_000_000 < int(done.stdout) < 2_000_000_000
