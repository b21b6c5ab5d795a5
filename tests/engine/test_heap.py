"""Large tensors that are freed are the system's again, also where one that was made after them lives on."""

import subprocess
import sys

import pytest

FREED_BETWEEN = """
import sys, torch
from luthier.engine import heap
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
if sys.argv[1] == "at once":
    heap.give_back_at_once()
def large():
    return torch.ones(4_000_000)
for _ in range(2):  # malloc learns from what is freed
    del_me = large(); del del_me
between, after = large(), torch.ones(500_000)
held = resident()
del between
print(held - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc's malloc")
def test_what_is_freed_between_two_tensors_is_given_back() -> None:
    by_itself, at_once = (
        int(subprocess.run([sys.executable, "-c", FREED_BETWEEN, how], capture_output=True, text=True, check=True).stdout) for how in ("", "at once")
    )
    assert by_itself < 1_000_000  # why the call is there
    assert at_once > 15_000_000
