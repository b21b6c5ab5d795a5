"""One tool in one process: started, timed, and asked what it did."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine_environments import Missing
from peers.protocol import MARK, Job

PEERS = Path(__file__).parent / "peers"
SOURCE = Path(__file__).parents[1] / "src"
LONGEST_S = 900


class Failed(Exception):
    """The worker did not answer; the message says why in one line."""


def work(program: str, job: Job, python: Path, threads: int) -> dict[str, Any]:
    """Run `peers/PROGRAM.py` on the job; its answer, with `peak_bytes` and `wall_s` of the whole process."""
    with tempfile.TemporaryDirectory(prefix="luthier-benchmark-") as scratch:
        folder = Path(scratch)
        (folder / "out").mkdir()
        path = folder / "job.json"
        began = time.time()
        path.write_text(json.dumps({**asdict(job), "scratch": str(folder / "out"), "started": began}), encoding="utf-8")
        with open(folder / "stdout", "w+b") as out, open(folder / "stderr", "w+b") as errors:
            process = subprocess.Popen(
                [str(python), str(PEERS / f"{program}.py"), str(path)], stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env=_environment(threads)
            )
            status, peak_bytes = _wait(process)
        said = (folder / "stdout").read_text(encoding="utf-8", errors="replace")
        if status:
            raise Failed(_reason(status, (folder / "stderr").read_text(encoding="utf-8", errors="replace")))
    answers = [line for line in said.splitlines() if line.startswith(MARK)]
    if not answers:
        raise Failed("it ended without an answer")
    return {**json.loads(answers[-1].removeprefix(MARK)), "peak_bytes": peak_bytes, "wall_s": time.time() - began}


def _wait(process: "subprocess.Popen[bytes]") -> tuple[int, int]:
    """The exit code of the process, and the most memory it held."""
    alarm = threading.Timer(LONGEST_S, process.kill)
    alarm.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        process.kill()
        raise
    finally:
        alarm.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _reason(status: int, stderr: str) -> str:
    if status == -9:
        return f"it was killed: out of memory, or longer than {LONGEST_S} s"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line]
    return f"it ended with {status}: {(errors or lines or ['no message'])[-1][:300]}"


def _environment(threads: int) -> Mapping[str, str]:
    """The same threads for everyone, and no network: what is measured is training."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRL_EXPERIMENTAL_SILENCE": "1"}
    path = os.pathsep.join(one for one in (str(SOURCE), os.environ.get("PYTHONPATH", "")) if one)
    return {**os.environ, **offline, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}


def python_for(tool: str, pythons: Mapping[str, Path | Missing]) -> Path:
    """Raises Failed for a peer that could not be installed."""
    python = pythons.get(tool, Path(sys.executable))
    if isinstance(python, Missing):
        raise Failed(f"not installed: {python.reason}")
    return python
