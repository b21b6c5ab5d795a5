"""A process that has imported pytest and the heavy libraries (its arguments), and forks itself for each run of pytest.

A mutant then costs its tests and no imports.
Nothing of Luthier and no plugin of pytest is imported here: those come anew in each fork, as the copy has them. Each line of standard
input is JSON {"arguments": [...], "printed": FILE}; it is answered by the fork's process id, and by its exit code once it has ended.
"""

import importlib
import json
import os
import sys

import hypothesis
import pytest


def run(arguments: list[str], printed: str) -> int:
    """pytest's exit code, in a session of its own, so that all that it starts can be ended with it."""
    os.setsid()
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        os.dup2(os.open(os.devnull if stream == 0 else printed, flags | (os.O_APPEND if stream else 0)), stream)
    sys.path[0] = os.getcwd()  # as `python -m pytest` has it
    hypothesis.settings.register_profile("mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], database=None, deadline=None)
    hypothesis.settings.load_profile("mutants")  # a planted bug is noticed; minutes of looking for its simplest example say nothing more
    code = int(pytest.main(arguments))
    sys.stdout.flush()
    return code


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        asked = json.loads(line)
        pid = os.fork()
        if pid == 0:
            code = 70  # of a fault in this file
            try:
                code = run(asked["arguments"], asked["printed"])
            finally:
                os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
