"""A command line that thinks before it answers is not used: torch is imported by the verbs that need it, and not before."""

import subprocess
import sys
import time

# A guard against importing torch by another road (seconds), not a benchmark: the machine may be busy.
SLOWEST_START_S = 3.0
SLOW_TO_IMPORT = ["torch", "transformers", "peft", "huggingface_hub"]


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_importing_the_command_line_leaves_the_heavy_libraries_out() -> None:
    program = f"import sys, luthier, luthier.cli; print([name for name in {SLOW_TO_IMPORT} if name in sys.modules])"
    answer = python("-c", program)
    assert answer.stdout.strip() == "[]", answer.stderr


def test_help_comes_at_once() -> None:
    python("-m", "luthier", "--help")  # the first call compiles
    start = time.perf_counter()
    answer = python("-m", "luthier", "--help")
    seconds = time.perf_counter() - start
    print(f"luthier --help: {seconds:.2f} s")
    assert answer.returncode == 0, answer.stderr
    assert "demo" in answer.stdout
    assert seconds < SLOWEST_START_S
