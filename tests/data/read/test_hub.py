"""Hub data sets, against a stand-in on loopback: what is read, and what each refusal says."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("datasets")

# In a process of its own: the libraries read where the hub is when they are imported.
ASK = """
import json, sys
from pathlib import Path
from luthier.config.data import SourceSettings
from luthier.data.read.rows import rows_of
from luthier.data.read.source import find_sources
from luthier.errors import DataError
for asked in json.loads(sys.argv[1]):
    notes = []
    try:
        [file] = find_sources([SourceSettings(**asked)], Path("."), Path("spool"), notes.append)
        print(json.dumps([file.name, [row.value for row in rows_of(file, "utf-8", notes.append)], notes]))
    except DataError as error:
        print(json.dumps([str(error)]))
"""
LOG_IN = "\n  Try: check its name; where it is private or gated, ask for access on its page, then: hf auth login"


def answers(asked: list[dict[str, str]], folder: Path, **environment: str) -> list[list[object]]:
    server = runpy.run_path(str(Path(__file__).with_name("hub_stand_in.py")))["start"]()
    setting = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder / "hf"), "no_proxy": "127.0.0.1", **environment}
    try:
        command = [sys.executable, "-c", ASK, json.dumps(asked)]
        done = subprocess.run(command, cwd=folder, env=os.environ | setting, capture_output=True, text=True, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_data_set_is_read_and_each_refusal_is_named(tmp_path: Path) -> None:
    asked = [
        {"path": "org/sums"},
        {"path": "org/sums", "split": "test", "revision": "main"},
        {"path": "org/sums", "split": "dev"},
        {"path": "org/sums", "revision": "v9"},
        {"path": "missing/x"},
        {"path": "gated/x"},
        {"path": "private/x"},
    ]
    train = [{"q": "1 + 1", "a": "2"}, {"q": "1 + 2", "a": "3"}]
    assert answers(asked, tmp_path) == [
        ["org/sums/train", train, ["org/sums: the split train is read; not read: test"]],
        ["org/sums/test", [{"q": "2 + 2", "a": "4"}], []],
        ["org/sums: has no split dev\n  Try: split: one of train, test"],
        ["org/sums at v9: has no such revision\n  Try: check revision: a commit, a tag or a branch"],
        ["missing/x: is not on the hub, or is private" + LOG_IN],
        ["gated/x: is gated: its owners give access on request" + LOG_IN],
        ["private/x: may not be read with this account" + LOG_IN],
    ]
    assert len(list((tmp_path / "spool").iterdir())) == 2  # no staging folder is left
    [[offline]] = answers([{"path": "org/other"}], tmp_path, HF_HUB_OFFLINE="1")
    assert offline == "org/other: is not in the cache, and the hub is switched off (HF_HUB_OFFLINE)\n  Try: unset HF_HUB_OFFLINE, or name a file"


@pytest.mark.nightly
def test_a_hub_that_is_busy_or_silent_is_named(tmp_path: Path) -> None:
    busy, broken = answers([{"path": "busy/x"}, {"path": "broken/x"}], tmp_path)
    assert busy == ["busy/x: cannot be fetched now: the hub is asked too often\n  Try: wait some minutes; hf auth login raises the limit"]
    assert str(broken[0]).startswith("broken/x: cannot be fetched: the hub does not answer\n  Try: check the path, if a file was meant")
    [[silent]] = answers([{"path": "org/sums"}], tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert str(silent).startswith("org/sums: cannot be fetched: the hub does not answer")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.config.data import SourceSettings
    from luthier.data.read import hub
    from luthier.data.read.source import find_sources
    from luthier.errors import DataError

    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError) as error:
        find_sources([SourceSettings(path="org/sums")], tmp_path, tmp_path)
    assert str(error.value).startswith("org/sums: there is no such file or folder, and to fetch it from a hub, datasets is not installed")
    assert 'pip install "luthier[data]"' in str(error.value)
