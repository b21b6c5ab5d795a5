"""The settings of a run with the findings' first cures in them, as a file of its own."""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier import files
from luthier.config.load import load_config, settings_to_yaml
from luthier.diagnose.finding import Finding, by_severity
from luthier.errors import ConfigError
from luthier.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Mended:
    """The mended settings: their file (None where no setting mends anything), how they differ from the run's, and what was left out, with why."""

    file: Path | None
    difference: str
    left_out: Sequence[str]


def mend(run: RunFolder, findings: Sequence[Finding]) -> Mended:
    """Write mended.yaml beside the run's config.yaml: of each finding, gravest first, the first cure that is a setting and can be set.

    Nothing is overwritten: a second call writes mended-2.yaml. The run's own paths are whole, so that the file can be trained from anywhere.
    """
    overrides: dict[str, str] = {}
    left_out: list[str] = []
    for finding in by_severity(findings):
        for cure in (one for one in finding.cures if one.changes):
            wanted = {name: f"{name}={json.dumps(value)}" for name, value in cure.changes.items()}
            problem = _hindrance(run, overrides, wanted)
            if not problem:
                overrides |= wanted
                break
            left_out.append(f"{finding.id}: {cure.what} ({problem})")
    if not overrides:
        return Mended(None, "", left_out)
    before = run.config.read_text(encoding="utf-8")
    after = settings_to_yaml(load_config(run.config, list(overrides.values())).settings)
    file = _free(run.path)
    files.write_text(file, after)
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), run.config.name, file.name, lineterm="", n=1)
    return Mended(file, "\n".join(lines), left_out)


def _hindrance(run: RunFolder, chosen: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Why these settings cannot be set beside those that were chosen; "" where they can."""
    if taken := [name for name, override in wanted.items() if chosen.get(name, override) != override]:
        return f"a graver finding sets {', '.join(taken)}"
    try:
        load_config(run.config, [*chosen.values(), *wanted.values()])
    except ConfigError as error:
        return error.problem
    return ""


def _free(folder: Path) -> Path:
    """A name that nothing has yet."""
    numbered = (folder / f"mended-{number}.yaml" for number in range(2, 1000))
    return next(path for path in (folder / "mended.yaml", *numbered) if not path.exists())
