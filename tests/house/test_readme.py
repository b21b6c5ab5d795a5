"""What README.md tells people to type works as it stands."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
# make and pip are what CI begins with; the demo has a test of its own.
ELSEWHERE = ("make ", "pip install ", "luthier demo")


def blocks(language: str) -> list[list[str]]:
    return [block.strip().split("\n") for block in re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)]


def commands() -> list[str]:
    return [line for block in blocks("sh") for line in block if not line.startswith(ELSEWHERE)]


def verbs_of_the_table() -> list[list[str]]:
    """["models", "list"], ["models", "show"], ...: a row lists the words that may follow its first verb."""
    verbs = []
    for row in re.findall(r"^\| (`luthier .*?) \|", README, re.MULTILINE):
        first, *others = re.findall(r"`(.*?)`", row)
        words = first.split()[1:]
        verbs += [words] + [[*words[:-1], other] for other in others]
    return verbs


def environment() -> dict[str, str]:
    """What the user's shell would find, also where the package is not installed."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "luthier", *arguments]
    return subprocess.run(call, capture_output=True, text=True, timeout=900, check=False, cwd=folder, env=environment())


def test_the_table_lists_the_verbs() -> None:
    assert ["models", "fetch"] in verbs_of_the_table()
    assert len(verbs_of_the_table()) == 46


# One process asks for every --help: starting Python anew for each would take longer than all of them.
ASK_FOR_HELP = """
import contextlib, io, json, sys
from luthier.cli import main
answers = {}
for verb in json.loads(sys.argv[1]):
    sys.argv = ["luthier", *verb, "--help"]
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        try:
            main()
        except SystemExit as left:
            answers[" ".join(verb)] = [left.code, " ".join(shown.getvalue().split())]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def helps() -> dict[str, tuple[int, str]]:
    """The exit code and the text of every verb's --help."""
    answer = subprocess.run(
        [sys.executable, "-c", ASK_FOR_HELP, json.dumps(verbs_of_the_table())],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=environment() | {"COLUMNS": "200"},
    )
    return dict(json.loads(answer.stdout))


@pytest.mark.parametrize("verb", [" ".join(verb) for verb in verbs_of_the_table()])
def test_each_verb_answers_help_with_an_example(verb: str, helps: dict[str, tuple[int, str]]) -> None:
    code, shown = helps[verb]
    assert code == 0
    assert f"luthier {verb}" in shown.replace(f"Usage: luthier {verb}", "", 1)


@pytest.mark.parametrize("line", [line for line in commands() if line.startswith("luthier ")])
def test_each_verb_and_option_of_a_command_exists(line: str, helps: dict[str, tuple[int, str]]) -> None:
    words = shlex.split(line)[1:]
    verb = next(verb for verb in (" ".join(words[:2]), words[0]) if verb in helps)
    for option in (word for word in words if word.startswith("--")):
        assert option in helps[verb][1]


@pytest.mark.slow
@pytest.mark.real_model
def test_the_commands_work_one_after_the_other(tmp_path: Path, default_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", str(default_model.parents[1]))
    folder = tmp_path
    for line in commands():
        program, *arguments = shlex.split(line)
        if program == "cd":
            folder = folder / arguments[0]
            continue
        answer = run(arguments, folder)
        assert answer.returncode == 0, f"{line}\n{answer.stdout}\n{answer.stderr}"


def test_the_python_lines_name_what_exists() -> None:
    import luthier

    (lines,) = blocks("python")
    compile("\n".join(lines), "README.md", "exec")
    assert lines[0] == "import luthier"
    for owner, name in re.findall(r"\b(luthier|run)\.(\w+)\(", "\n".join(lines)):
        assert callable(getattr(luthier if owner == "luthier" else luthier.Run, name))


def test_every_link_leads_somewhere() -> None:
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


@pytest.mark.parametrize(("name", "most_lines"), [("ARCHITECTURE.md", 120), ("CONTRIBUTING.md", 80)])
def test_a_page_stays_short(name: str, most_lines: int) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= most_lines


@pytest.mark.parametrize("room", sorted(path.parent.name for path in (ROOT / "src" / "luthier").glob("*/__init__.py")))
def test_every_room_says_what_enters_and_what_leaves(room: str) -> None:
    text = (ROOT / "src" / "luthier" / room / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 30
    assert "May import" in text
