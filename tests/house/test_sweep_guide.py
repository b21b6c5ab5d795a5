"""docs/sweep.md: its search is one, its table has every key, and its commands are those of the command line."""

import re
from pathlib import Path

from luthier.config.search import Search, load_search

GUIDE = (Path(__file__).parents[2] / "docs" / "sweep.md").read_text(encoding="utf-8")


def test_the_search_it_shows_can_be_read(tmp_path: Path) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)
    (tmp_path / "sweep.yaml").write_text(text, encoding="utf-8")
    search, _ = load_search(tmp_path / "sweep.yaml")
    assert search.trials == 12
    assert len(search.settings) == 3


def test_its_table_has_every_key() -> None:
    keys = re.findall(r"^\| `(\w+)` \| ", GUIDE, re.MULTILINE)
    assert [key for key in keys if key in Search.model_fields] == list(Search.model_fields)
    assert f"| `trials` | {Search.model_fields['trials'].default} |" in GUIDE
