"""Names that something outside has are taken as they are, blanks and all."""

from pathlib import Path

import pytest

from luthier.config.load import config_of_rows
from luthier.errors import ConfigError


def test_blanks_at_the_ends_belong_to_the_name() -> None:
    data = config_of_rows(Path("rows.jsonl "), "m", ["data.columns={answer: ' b'}"]).settings.data
    assert (data.sources[0].path, data.columns) == ("rows.jsonl ", {"answer": " b"})


def test_a_name_that_is_no_text_is_an_error_that_says_so() -> None:
    with pytest.raises(ConfigError, match="not UTF-8"):
        config_of_rows(Path("caf\udce9.jsonl"), "m")
