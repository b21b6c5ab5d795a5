"""Memory that ends anywhere ends in words, with the exit code of a machine that is not enough."""

import sys

import pytest

from luthier.cli import app


@pytest.mark.parametrize("error", [MemoryError("no room for 8 GB"), RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")])
def test_a_verb_that_finds_no_memory(error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*given: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(app, "_build", lambda: fail)
    monkeypatch.setattr(sys, "argv", ["luthier", "chat", "last"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert ended.value.code == 5
    said = capsys.readouterr().err
    assert f"the memory is not enough ({error})" in said
    assert "Try: a smaller model" in said
    assert "Traceback" not in said
