"""docs/models.md: its table of licenses is the data's, its figures are the catalog's, and its commands run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.models import catalog, licenses
from luthier.models.licenses import USES, License

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
WORDS = {"allowed": "yes", "allowed with obligations": "with duties", "not for this use": "no"}


@pytest.mark.parametrize("known", licenses.licenses(), ids=lambda known: known.id)
def test_the_guide_has_the_row_of_each_license(known: License) -> None:
    verdicts = [WORDS[licenses.audit("", known.id, use).verdict] for use in USES]
    assert f"| `{known.id}` | [{known.title}]({known.url}) | {' | '.join(verdicts)} | {known.trains_others} |" in GUIDE


def test_the_guide_has_no_other_license() -> None:
    assert len(re.findall(r"^\| `", GUIDE, re.MULTILINE)) == len(licenses.licenses())


@pytest.mark.parametrize(
    ("name", "figure"), [("phi-2", "2.78B"), ("mixtral-8x7b", "46.7B"), ("gemma-7b", "8.54B"), ("gemma-2-2b", "2.61B"), ("mixtral-8x7b", "12.9B")]
)
def test_the_figures_are_the_catalogs(name: str, figure: str) -> None:
    card = catalog.card(name)
    assert card is not None
    counted = card.facts.active_parameters if figure == "12.9B" else card.facts.parameters
    assert f"{counted / 1e9:.3g}B" == figure
    assert figure in GUIDE


def test_the_commands_run(tmp_path: Path) -> None:
    (block,) = re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL)
    lines = [shlex.split(line)[1:] for line in block.strip().split("\n")]
    assert len(lines) == 4
    code = f"import sys\nfrom luthier.cli import main\nfor line in {lines!r}:\n    sys.argv = ['luthier', *line]\n"
    code += "    try:\n        main()\n    except SystemExit as left:\n        assert not left.code, line\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("qwen3-1.7b", "Qwen/Qwen3-4B", "refused (", "Built with Llama"):
        assert words in done.stdout
