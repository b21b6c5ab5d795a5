"""`luthier watch` and the live view of a bar, as a person or a pipe sees them."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from luthier import files, run_lock
from luthier.cli import app
from luthier.cli.terminal import Terminal
from luthier.cli.watching import sparkline
from luthier.records import StepReport
from luthier.run_folder import RunFolder


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run that has ended."""
    folder = RunFolder(tmp_path / "run")
    folder.adapter.mkdir(parents=True)
    folder.config.write_text("model: m\n", encoding="utf-8")
    files.write_json(folder.plan, {"updates": 3})
    for step in (1, 2, 3):
        folder.add_step(StepReport(step, 0.1, 6.0 / step, 0.5, 1e-3, 100, 90, 40, 0.5, 2_000_000_000))
    folder.add_evaluation(3, 1.5, {"exact_match": 0.5, "base/exact_match": 0.125}, drift={"kl": 0.25, "general_loss": 2.5, "base_general_loss": 2.0})
    folder.say("finished")
    return folder


def shown(*arguments: str) -> str:
    result = CliRunner().invoke(app._build(), ["watch", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_snapshot_has_the_numbers_the_curves_and_what_was_said_last(run: RunFolder) -> None:
    output = shown(str(run.path), "--once")
    lines = [" ".join(line.split()) for line in output.splitlines()]
    assert lines[0] == "run: ended"
    for line in ("step 3 of 3", "loss 2.0000", "exact_match 0.5 (base 0.125)", "drift from the base 0.25 nats", "loss █▃▁ 2 to 6"):
        assert line in lines
    assert lines[-1].endswith("finished")


def test_lines_are_passed_through_to_a_pipe_to_the_letter(run: RunFolder) -> None:
    output = shown(str(run.path), "--json")
    assert output == run.metrics.read_text(encoding="utf-8")
    assert [json.loads(line)["step"] for line in output.splitlines()] == [1, 2, 3, 3]


def test_a_pipe_gets_a_line_for_what_is_new(run: RunFolder) -> None:
    (line,) = shown(str(run.path)).splitlines()
    assert line.startswith("run: ended  step 3 of 3  loss 2.0000  tokens/s 200 of the rows, 180 run")


def test_who_works_in_the_run_is_named(run: RunFolder) -> None:
    with run_lock.held(run.path, "eval"):
        assert "run: running by pid " in shown(str(run.path), "--once")


def test_what_a_run_says_commands_no_terminal(run: RunFolder) -> None:
    run.say("\x1b[31mred")
    assert "\x1b" not in shown(str(run.path), "--once")


def test_once_and_json_are_two_things(run: RunFolder) -> None:
    result = CliRunner().invoke(app._build(), ["watch", str(run.path), "--once", "--json"])
    assert "leave one of the two out" in str(result.exception)


def test_a_curve_is_drawn_between_its_least_and_its_greatest() -> None:
    assert sparkline([1.0, 2.0, 3.0]) == "▁▅█  1 to 3"
    assert sparkline([2.0, 2.0]) == "▁▁  2 to 2"
    assert (sparkline([]), sparkline([1.0])) == ("", "")
    assert sparkline([float(value) for value in range(100)], columns=4) == "▁▃▆█  12 to 87"


def screen_of(width: int = 100) -> Terminal:
    terminal = Terminal()
    terminal.console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    return terminal


def test_a_terminal_shows_the_numbers_below_the_bar_and_lines_above_it() -> None:
    terminal = screen_of()
    with terminal.bar("training", 10) as bar:
        bar.advance(3, "loss 2.000", {"loss": "2.0000", "exact_match": "0.500 (base 0.125)"})
        terminal.say("step 3/10")
    output = terminal.console.file.getvalue()  # type: ignore[attr-defined]
    assert "exact_match  0.500 (base 0.125)" in output
    assert "3/10" in output
    assert "step 3/10" in output
    assert "loss 2.000 " not in output, "the words beside the bar make room for the numbers"


def test_a_pipe_gets_plain_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().bar("training", 10) as bar:
        bar.advance(3, "loss 2.000", {"loss": "2.0000"})
    assert capsys.readouterr().out == "training ...\n"
