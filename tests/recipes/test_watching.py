"""`luthier watch`: a run is followed from its folder alone, whatever its writer is just doing."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from luthier import files, run_lock
from luthier.errors import RunError
from luthier.recipes import watching
from luthier.records import StepReport
from luthier.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    files.write_json(folder.plan, {"updates": 4})
    return folder


def report(step: int) -> StepReport:
    return StepReport(step, 0.1, 4.0 / step, 0.5, 1e-3, 100, 90, 40, 0.5, 2_000_000_000)


def follow(run: RunFolder, *events: Callable[[], object]) -> list[watching.State]:
    """The states while `events` happen, one between two looks, in a run that this process works in until they are over."""
    left = list(events)
    held = run_lock.held(run.path, "train")
    held.__enter__()

    def sleep(seconds: float) -> None:
        if left:
            left.pop(0)()
        else:
            held.__exit__(None, None, None)

    return list(watching.follow(run, 0.0, sleep=sleep))


def steps_of(state: watching.State) -> list[int]:
    return [json.loads(line)["step"] for line in state.new]


def test_what_is_new_is_given_once_and_the_last_state_says_how_it_ended(run: RunFolder) -> None:
    run.add_step(report(1))
    states = follow(run, lambda: run.add_step(report(2)), lambda: run.adapter.mkdir())
    assert [(state.ended, steps_of(state)) for state in states] == [("running", [1]), ("running", [2]), ("ended", [])]
    assert [row["step"] for row in states[-1].steps] == [1, 2]
    assert "(train)" in states[0].doing


def test_a_line_that_is_not_whole_yet_waits_for_its_end(run: RunFolder) -> None:
    run.add_step(report(1))
    whole = run.metrics.read_bytes()

    def rest() -> None:
        with open(run.metrics, "ab") as stream:
            stream.write(whole[40:])

    with open(run.metrics, "ab") as stream:
        stream.write(whole[:40])
    states = follow(run, lambda: None, rest)
    assert [steps_of(state) for state in states] == [[1], [1], []]
    assert "".join(f"{line}\n" for state in states for line in state.new).encode() == whole * 2


def test_a_run_that_goes_on_writes_some_lines_anew_and_none_is_given_twice(run: RunFolder) -> None:
    """Killed after step 3, it goes on from its checkpoint of step 1: 2 and 3 come again, because they are done again; 1 does not."""
    for step in (1, 2, 3):
        run.add_step(report(step))
    states = follow(run, lambda: run.forget_after(1), lambda: run.add_step(report(2)), lambda: run.add_step(report(3)))
    assert [steps_of(state) for state in states] == [[1, 2, 3], [], [2], [3], []]
    assert [row["step"] for row in states[-1].steps] == [1, 2, 3]


def test_a_run_that_was_stopped_is_told_from_one_whose_process_is_gone(run: RunFolder) -> None:
    run.add_step(report(1))
    stopped = watching.look(run)
    assert stopped.ended == "stopped"
    watching.require_ended_well(run, stopped)
    begins = f"import os; from pathlib import Path; from luthier import run_lock; held = run_lock.held(Path({str(run.path)!r}), 'train')"
    killed = f"{begins}; held.__enter__(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == 9
    died = watching.look(run)
    assert died.ended == "died"
    with pytest.raises(RunError, match="its process is gone without a word, after step 1 of 4") as caught:
        watching.require_ended_well(run, died)
    assert caught.value.next_step == f"luthier train --resume {run.path}"


def test_the_numbers_are_those_of_the_newest_lines_with_the_base_beside(run: RunFolder) -> None:
    for step in (1, 2):
        run.add_step(report(step))
    metrics = {"perplexity": 7.0, "exact_match": 0.5, "base/exact_match": 0.125}
    run.add_evaluation(2, 1.5, metrics, drift={"kl": 0.25, "general_loss": 2.5, "base_general_loss": 2.0})
    with run_lock.held(run.path, "train"):
        found = watching.numbers_of(watching.look(run))
    assert found == {
        "step": "2 of 4",
        "loss": "2.0000",
        "tokens/s": "200 of the rows, 180 run",
        "memory": "2.00 GB at most",
        "learning rate": "1.00e-03",
        "time left": "1 s",
        "held-out loss": "1.5 (step 2)",
        "perplexity": "7",
        "exact_match": "0.5 (base 0.125)",
        "drift from the base": "0.25 nats",
        "loss on general rows": "2.5 (base 2)",
    }


def test_a_run_without_a_line_yet_and_numbers_that_are_not_finite(run: RunFolder) -> None:
    assert watching.numbers_of(watching.look(run)) == {}
    run.add_evaluation(2, float("nan"), {"exact_match": 0.5})
    assert watching.numbers_of(watching.look(run)) == {"held-out loss": "not finite (step 2)", "exact_match": "0.5"}
