"""model_card.md: what a model hub shows of a tuned model, in the form that its libraries read (YAML front matter, then Markdown)."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from luthier import files
from luthier.config.metric_names import lower_is_better, shown
from luthier.diagnose.finding import read_findings
from luthier.diagnose.reproduce import reproduce
from luthier.diagnose.run_charts import steps_of
from luthier.diagnose.scores import compare, difference_in_words, in_words, interval, metric_name, model_name, said_lower
from luthier.errors import RunError
from luthier.models import catalog, notice
from luthier.records import Scorecard
from luthier.run_folder import RunFolder

NAME = "model_card.md"
SHOWN_ROWS = 3


def write_model_card(run: RunFolder) -> Path:
    """Write RUN/model_card.md from what the run folder holds, and return its path."""
    path = run.path / NAME
    files.write_text(path, card_text(run))
    return path


def card_text(run: RunFolder) -> str:
    """The card: front matter that huggingface_hub reads, then what was trained on what, and how well it does. Untrusted texts are fenced."""
    settings, environment = _settings(run), _json(run.environment)
    scorecard = _scorecard(run)
    parts = [
        f"# {run.name}",
        _summary(run, settings, scorecard),
        _part("What was trained", _trained(run, settings)),
        _part("How well it does", _scores(scorecard)),
        _part("What it forgot", _forgot(run)),
        _part("Findings", _findings(run)),
        _part("License", _license(run, environment)),
        _part("How to do it again", "\n".join(["```sh", *reproduce(run), "```"]) if run.config.exists() else ""),
    ]
    return f"---\n{_front(run, settings, environment, scorecard)}---\n\n" + "\n\n".join(part for part in parts if part) + "\n"


def _part(title: str, content: str) -> str:
    return f"## {title}\n\n{content}" if content else ""


def _json(path: Path) -> dict[str, Any]:
    try:
        found = files.read_json(path)
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}


def _settings(run: RunFolder) -> dict[str, Any]:
    """The run's settings as they stand in its config.yaml; a broken file has none."""
    try:
        found = YAML(typ="safe").load(run.config.read_text(encoding="utf-8")) if run.config.exists() else {}
    except (YAMLError, UnicodeDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _scorecard(run: RunFolder) -> Scorecard | None:
    try:
        return run.read_scorecard() if run.scorecard.exists() else None
    except RunError:
        return None


def _front(run: RunFolder, settings: Mapping[str, Any], environment: Mapping[str, Any], scorecard: Scorecard | None) -> str:
    """The front matter. Keys are the hub's: base_model, license, library_name, pipeline_tag, tags, model-index."""
    hub = _hub(str(settings.get("model", "")))
    front: dict[str, Any] = {"base_model": hub} if hub else {}
    front |= notice.front_matter(environment["licenses"]) if "licenses" in environment else {}
    whole = run.model.is_dir()
    front |= {"library_name": "transformers" if whole else "peft", "pipeline_tag": "text-generation"}
    front["tags"] = ["luthier", str(settings.get("objective", "sft")), "full" if whole else str(settings.get("method", "lora"))]
    if scorecard and (results := _results(scorecard)):
        front["model-index"] = [{"name": run.name, "results": results}]
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(front, text)
    return text.getvalue()


def _hub(model: str) -> str:
    """The base by its id on the hub; "" for a folder, whose path says nothing to others."""
    card = catalog.card(model)
    if card is not None:
        return card.hub
    return model if model.count("/") == 1 and not Path(model).exists() and not model.startswith((".", "/", "~")) else ""


def _results(scorecard: Scorecard) -> list[dict[str, Any]]:
    tuned = scorecard.models.get("tuned", {})
    measured = [{"type": shown(name.partition("=")[0]), "name": metric_name(name), "value": round(metric.value, 6)} for name, metric in tuned.items()]
    rows = {"name": "held-out rows", "type": "held-out-rows"}
    return [{"task": {"type": "text-generation"}, "dataset": rows, "metrics": measured}] if measured else []


def _summary(run: RunFolder, settings: Mapping[str, Any], scorecard: Scorecard | None) -> str:
    model, method = settings.get("model", "its base"), settings.get("method", "lora")
    first = f"{_code(_file(model))}, fine-tuned with Luthier (method: {method}, objective: {settings.get('objective', 'sft')})."
    if scorecard and scorecard.models.get("tuned"):
        headline, lead = compare(scorecard)
        return f"{first}\n\n**{headline}.** {lead}"
    return f"{first}\n\nIts answers are not measured yet."


def _file(name: object) -> str:
    """A file's or a model's name; what lies above a file says where its owner works, and is nobody's business."""
    path = Path(str(name))
    return path.name if path.is_absolute() else str(name)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'").replace("\n", " ") + "`"


def _trained(run: RunFolder, settings: Mapping[str, Any]) -> str:
    ledger, plan, steps = _json(run.ledger), _json(run.plan), steps_of(run)
    rows = ledger.get("rows", {})
    lines = []
    if rows:
        aside = sum(rows.get("rejected", {}).values())
        lines.append(f"- Rows: {rows['read']:,} read = {rows['used']:,} used + {aside:,} set aside")
    if tokens := ledger.get("tokens"):
        lines.append(f"- Tokens: {tokens['read']:,} read, {tokens['trained']:,} of them trained")
    lines += [f"- Source: {_code(_file(source.get('file')))}" for source in ledger.get("sources", [])[:SHOWN_ROWS]]
    if steps:
        minutes = sum(row["seconds"] for row in steps) / 60
        lines.append(f"- {len(steps):,} updates, {minutes:.1f} minutes, {max(row['peak_bytes'] for row in steps) / 1e9:.2f} GB at the peak")
        if plan:
            planned = sum(plan["memory_bytes"].values()) / 1e9
            lines.append(f"- Planned: {plan['updates']:,} updates, {plan['seconds_estimated'] / 60:.1f} minutes, {planned:.2f} GB")
    lines += [f"- {row['name']}: {row['value']} ({row['why']})" for row in plan.get("resolved", [])]
    return "\n".join(lines)


def _scores(scorecard: Scorecard | None) -> str:
    if scorecard is None:
        return ""
    names = list(dict.fromkeys(name for row in scorecard.models.values() for name in row))
    cells = [
        [
            model_name(model),
            *(f"{in_words(name, row[name])} ({interval(name, row[name])}, n = {row[name].n:,})" if name in row else "" for name in names),
        ]
        for model, row in scorecard.models.items()
    ]
    shown = _table(["Model", *map(metric_name, names)], cells)
    lower = [metric_name(name) for name in names if lower_is_better(name, said_lower(scorecard))]
    shown += f"\n\nLower is better: {', '.join(lower)}." if lower else ""
    found = [
        f"- {metric_name(name)}, {model_name(model)}: {difference_in_words(name, difference)}"
        for model, row in scorecard.differences.items()
        for name, difference in row.items()
    ]
    first = model_name(next(iter(scorecard.models), "base"))
    return shown + (f"\n\nDifferences to {first} over the same rows, with 95 % intervals:\n\n" + "\n".join(found) if found else "")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)


def _forgot(run: RunFolder) -> str:
    measured = [row["drift"] for row in steps_of(run, "eval") if row.get("drift")]
    if not measured or measured[-1].get("general_loss") is None or measured[-1].get("base_general_loss") is None:
        return ""
    drift = measured[-1]
    kl = f"; KL(tuned || base) is {drift['kl']:.4f} nats a token" if drift.get("kl") is not None else ""
    return f"On general texts the loss is {drift['general_loss']:.4f} nats a token, and {drift['base_general_loss']:.4f} for the base{kl}."


def _findings(run: RunFolder) -> str:
    try:
        found = read_findings(run)
    except RunError:
        return ""
    if found is None:
        return ""
    return "\n".join(f"- {one.severity}: {one.title}: {one.seen}" for one in found) or "Nothing was found that needs mending."


def _license(run: RunFolder, environment: Mapping[str, Any]) -> str:
    kept = environment.get("licenses")
    return notice.license_section(kept, run.name) if kept else ""
