"""The mutation gate: planted bugs are in order, and the gate itself sees a bug, the lack of one, and a patch that no longer fits."""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SPEC = importlib.util.spec_from_file_location("run_mutants", Path(__file__).parents[2] / "mutants" / "run.py")
assert SPEC is not None
assert SPEC.loader is not None
mutants = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = mutants  # where its dataclasses look for their types
SPEC.loader.exec_module(mutants)

PATCHES = sorted(mutants.FOLDER.glob("*.patch"))
LEAST_MUTANTS = 36
THIRD_TIMEOUT_S = 1200

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="patches are applied by git")


def test_there_are_enough() -> None:
    assert len(PATCHES) >= LEAST_MUTANTS


@needs_git
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_patch_says_what_it_breaks_fits_the_code_and_names_tests_that_exist(patch: Path) -> None:
    mutant = mutants.read(patch)
    assert mutants.plant(mutant, mutants.ROOT, check_only=True) == ""
    assert all(name.startswith("src/luthier/") for name in mutant.changed)
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert (mutants.ROOT / file).exists()
        assert not name or f"def {name.partition('[')[0]}(" in (mutants.ROOT / file).read_text(encoding="utf-8")


def test_the_list_of_the_docs_names_each_with_what_it_breaks() -> None:
    listed = re.findall(r"^\| (\w+) \| (.+) \| \S.* \|$", (mutants.ROOT / "docs" / "mutants.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert [name for name, _ in listed] == [patch.stem for patch in PATCHES]
    assert [breaks for _, breaks in listed] == [mutants.read(patch).breaks for patch in PATCHES]


def test_every_mutant_has_its_turn_within_three_days() -> None:
    every = [mutants.Mutant(str(number), "", [], Path(), []) for number in range(50)]
    days = [mutants.third_of(every, day) for day in (738_000, 738_001, 738_002)]
    assert sorted(int(one.name) for day in days for one in day) == list(range(50))
    assert max(map(len, days)) == 17


@pytest.mark.parametrize(
    "text", ["", "Breaks: something\n", "Breaks: something\nKilled by: tests/x.py\n", "Killed by: tests/x.py\nBreaks: something\n"]
)
def test_a_patch_without_its_two_lines_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "nameless.patch").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="nameless"):
        mutants.read(tmp_path / "nameless.patch")


def planted(folder: Path, name: str, before: str, after: str, tests: str = "tests/sums/test_add.py") -> Any:
    patch = folder / f"{name}.patch"
    change = f"--- a/src/luthier/sums/add.py\n+++ b/src/luthier/sums/add.py\n@@ -1,2 +1,2 @@\n def add(one, other):\n-{before}\n+{after}\n"
    patch.write_text(f"Breaks: {name}\nKilled by: {tests}\n\n{change}", encoding="utf-8")
    return mutants.read(patch)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with one function and its tests, beside which a package of the same name is installed."""
    root = tmp_path / "tree"
    for name, text in {
        "pyproject.toml": "[tool.pytest.ini_options]\n",
        "src/luthier/__init__.py": "",
        "src/luthier/sums/__init__.py": "",
        "src/luthier/sums/add.py": "def add(one, other):\n    return one + other\n",
        "tests/sums/test_add.py": "from luthier.sums.add import add\n\n\ndef test_sum():\n    assert add(2, 2) == 4\n",
        "tests/sums/test_more.py": "from luthier.sums.add import add\n\n\ndef test_other_sum():\n    assert add(2, 3) == 5\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


@needs_git
def test_the_gate_sees_a_bug_and_the_lack_of_one_in_the_copy_alone(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = "    return one + other"
    sure, wider, harmless, stale, broken = outcomes = [
        planted(tmp_path, "sure", right, "    return one - other"),
        planted(tmp_path, "wider", right, "    return one * other"),
        planted(tmp_path, "harmless", right, "    return other + one"),
        planted(tmp_path, "stale", "    return sum(one, other)", "    return 0"),
        planted(tmp_path, "broken", right, "    return one +"),
    ]
    found, wrong = mutants.gate(outcomes, 1, tree, heavy=())
    assert wrong == ""
    killed = {one.mutant.name: one.killed_by for one in found}
    assert killed[sure.name] == "tests/sums/test_add.py::test_sum"
    assert killed[wider.name] == "tests/sums/test_more.py::test_other_sum"
    assert killed[harmless.name] == killed[stale.name] == killed[broken.name] == ""
    faults = {one.mutant.name: one.fault for one in found}
    assert faults[harmless.name] == ""
    assert "the patch no longer applies" in faults[stale.name]
    assert "git diff -U1" in faults[stale.name]
    assert faults[broken.name].startswith("pytest ended with 2")
    assert "SURVIVED   harmless" in capsys.readouterr().err
    assert (tree / "src/luthier/sums/add.py").read_text(encoding="utf-8").endswith(right + "\n")


@needs_git
def test_tests_that_fail_without_any_bug_prove_nothing(tree: Path, tmp_path: Path) -> None:
    test = tree / "tests/sums/test_add.py"
    test.write_text(test.read_text(encoding="utf-8").replace("== 4", "== 5"), encoding="utf-8")
    _, wrong = mutants.gate([planted(tmp_path, "sure", "    return one + other", "    return one - other")], 1, tree, heavy=())
    assert wrong == "without any bug: tests/sums/test_add.py::test_sum fails"


@needs_git
def test_a_bug_that_hangs_ends_with_its_tests(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = planted(tmp_path, "endless", "    return one + other", "    while True: pass")
    monkeypatch.setattr(mutants, "NAMED_TIMEOUT_S", 3)
    found, _ = mutants.gate([endless], 1, tree, heavy=())
    assert found[0].fault == "its tests did not end in time"


@needs_git
@pytest.mark.slow
def test_the_third_of_today_is_killed() -> None:
    command = [sys.executable, str(mutants.FOLDER / "run.py"), "--third"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=THIRD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    killed = re.search(r"^(\d+) of (\d+) mutants killed", done.stdout, re.MULTILINE)
    assert killed is not None
    assert killed[1] == killed[2]
