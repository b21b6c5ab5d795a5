"""A settings file in a folder of its own."""

from collections.abc import Callable
from pathlib import Path

import pytest

from luthier.config.load import Config, load_config
from luthier.errors import ConfigError

LEAST = "model: m\ndata: {train: rows.jsonl}\n"
Load = Callable[..., Config]
Refuse = Callable[..., ConfigError]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """load(text, override, ...) reads luthier.yaml: the least that is needed (2 lines), and `text` below it."""
    monkeypatch.chdir(tmp_path)

    def read(text: str | bytes = "", *overrides: str, head: str = LEAST) -> Config:
        content = text if isinstance(text, bytes) else (head + text).encode()
        (tmp_path / "luthier.yaml").write_bytes(content)
        return load_config("luthier.yaml", list(overrides))

    return read


@pytest.fixture
def refuse(load: Load) -> Refuse:
    """refuse(...) takes what load does and gives the error that the user sees."""

    def read(text: str | bytes = "", *overrides: str, head: str = LEAST) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load(text, *overrides, head=head)
        return caught.value

    return read
