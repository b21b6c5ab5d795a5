"""docs/judging.md and docs/report.md: their commands and options exist, and their tables name what a run holds."""

import functools
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from luthier.cli.app import _build
from luthier.diagnose.report import SECTIONS
from luthier.evaluate.people import QUESTIONS

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in ("judging", "report")}


def commands() -> list[str]:
    return [line for text in GUIDES.values() for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.strip().split("\n")]


@functools.cache
def help_of(verb: str) -> str:
    shown = CliRunner().invoke(_build(), [verb, "--help"], env={"COLUMNS": "200"}, color=False)
    assert shown.exit_code == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.output)


@pytest.mark.parametrize("line", commands())
def test_each_verb_and_option_of_a_command_exists(line: str) -> None:
    program, verb, *words = shlex.split(line)
    assert program == "luthier"
    for option in (word for word in words if word.startswith("-")):
        assert option in help_of(verb)


def test_options_named_in_the_text_exist() -> None:
    assert [option for option in re.findall(r"`(--[a-z-]+)", GUIDES["judging"]) if option not in help_of("judge")] == []


def test_the_five_questions_and_the_parts_of_the_report_are_named() -> None:
    assert ", ".join(QUESTIONS) in GUIDES["judging"]
    named = re.findall(r"^\| ([A-Z][^|]*?) \|", GUIDES["report"], re.MULTILINE)
    titles = [title.partition(" (")[0] for title in SECTIONS]
    assert [part for row in named for part in row.split(", ") if part not in titles] == []
