"""What the rows did to the run: labels that are wrong, rows that are cut, one source that is all there is, questions that leaked."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.quality.check import Given
from luthier.data.quality.duplicates import conflicting_answers, overlap
from luthier.data.quality.near import near_duplicates
from luthier.diagnose.cures import milder
from luthier.diagnose.evidence import Evidence
from luthier.diagnose.finding import Cure, Finding
from luthier.records import Conversation
from luthier.run_folder import RunFolder

# A row is a suspect whose loss is so many deviations (of the median absolute deviation) above the median, and so many nats.
DEVIATIONS, NATS = 5.0, 0.75
LEAST_ROWS = 20
# Where more rows than this share are far off, they are another kind of task and not mistakes.
MOST_SUSPECT_SHARE = 0.25
NAMED = 8
CUT_SHARE, TOO_LONG_SHARE = 0.01, 0.01
# A source that gives less than this share of what each would have if all gave the same.
SMALL_SOURCE = 0.1
REPEATED_SHARE, LEAKED_SHARE = 0.1, 0.02
TOO_GOOD = 0.9
NOT_READ = "the rows were not read (luthier diagnose RUN reads them, where the files are as they were)"
TO_SUSPECTS = "read suspect_rows.jsonl in the run folder; mend these rows in their files, or take them out"


def noisy_labels(evidence: Evidence) -> list[Finding] | str:
    """Rows whose loss stays high while that of the others fell: often a wrong answer (Swayamdipta 2020, arXiv:2009.10795)."""
    # Rows that are replayed are of another kind than the task's, and are meant to be.
    general = {str(one["file"]) for one in _replayed(evidence)}
    recorded = {one.source: one for one in evidence.row_losses if len(one.losses) > 2 and one.source.rpartition(":")[0] not in general}
    now = {evidence.run.named(source): loss for source, loss in evidence.probed.row_losses}
    stayed = {source: one.stays for source, one in recorded.items()}
    values = now or stayed
    if len(values) < LEAST_ROWS:
        return f"losses of at least {LEAST_ROWS} training rows are needed (the model, or training.rows_file=true over three epochs or more)"
    limit, middle = _limit(values)
    # A row that the trained model finds hard, and found hard all along where that was recorded.
    always = _limit(stayed)[0] if len(stayed) >= LEAST_ROWS else 0.0
    far = sorted((source for source, loss in values.items() if loss > limit and stayed.get(source, math.inf) > always), key=lambda one: -values[one])
    suspects = [(source, values[source], list(recorded[source].losses) if source in recorded else []) for source in far]
    if not suspects or len(suspects) > MOST_SUSPECT_SHARE * len(values):
        return []
    named = ", ".join(f"{source} ({loss:.2f})" for source, loss, _ in suspects[:NAMED])
    more = f" and {len(suspects) - NAMED} more" if len(suspects) > NAMED else ""
    return [
        Finding(
            "noisy_labels",
            "warning" if len(suspects) > 0.02 * len(values) else "note",
            "rows that are perhaps wrong",
            f"the loss of {len(suspects)} of {len(values)} rows stays above {limit:.2f} nats a token, where {middle:.2f} is usual: {named}{more}",
            "a wrong answer teaches wrong answers, and is learned by heart at the price of the right ones",
            [Cure(TO_SUSPECTS), Cure("luthier data check looks for the usual mistakes; training.label_smoothing_factor=0.1 makes them cost less")],
            {"rows": [{"row": source, "loss": round(loss, 4), "losses": losses} for source, loss, losses in suspects], "limit": limit},
        )
    ]


def _replayed(evidence: Evidence) -> list[dict[str, Any]]:
    """The sources that data.replay mixed in: Luthier's own cure, which is no fault of the rows."""
    return [one for one in evidence.ledger.get("sources", []) if one.get("replay")]


def _limit(losses: Mapping[str, float]) -> tuple[float, float]:
    """From where on a loss is far above the others, and their median."""
    middle = statistics.median(losses.values())
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in losses.values())
    return middle + max(DEVIATIONS * deviation, NATS), middle


def conflicts(evidence: Evidence) -> list[Finding] | str:
    """Rows that ask the same and answer differently."""
    if evidence.rows is None:
        return NOT_READ
    train = evidence.rows.train
    found = conflicting_answers(train, Given(evidence.settings.checks))
    if found.found < 2 or (found.share < 0.01 and found.found < LEAST_ROWS):
        return []
    places = sorted({evidence.run.named(train[place].source) for place in found.places})
    return [
        Finding(
            "conflicting_answers",
            "warning",
            "one question, several answers",
            found.said,
            "the model can learn only one of them, and is wrong on the others whatever it does",
            [Cure(TO_SUSPECTS), Cure("luthier data check FILE shows the pairs; where several answers are right, leave them")],
            {"rows": places, "questions": found.numbers["questions"]},
        )
    ]


def duplicated(evidence: Evidence) -> list[Finding] | str:
    """Many training rows nearly repeat another one."""
    if evidence.rows is None:
        return NOT_READ
    found = near_duplicates(evidence.rows.train, Given(evidence.settings.checks))
    if found.share < REPEATED_SHARE or found.found < 2:
        return []
    return [
        Finding(
            "duplicates",
            "warning",
            "rows that repeat each other",
            found.said,
            "what is there several times is learned several times, first by heart; a score on rows like them says little",
            [Cure("luthier data clean FILE keeps the first of each"), *milder(evidence.settings)],
            {"rows": [evidence.run.named(evidence.rows.train[place].source) for place in found.places[:100]], "share": round(found.share, 4)},
        )
    ]


def leaked(evidence: Evidence) -> list[Finding] | str:
    """Held-out questions that are among the training rows too, nearly word for word: the score measures memory."""
    if evidence.rows is None:
        return NOT_READ
    held_out = evidence.rows.held_out
    if not held_out:
        return "no rows are held out (data.eval)"
    found = overlap(evidence.rows.train, Given(evidence.settings.checks, held_out=held_out))
    share = min(1.0, found.found / len(held_out))
    if found.found < 2 or share < LEAKED_SHARE:
        return []
    good = _score_too_good(evidence)
    return [
        Finding(
            "leakage",
            "severe" if good and share > REPEATED_SHARE else "warning",
            "held-out rows that were trained",
            found.said + (f"; {good} may be memory" if good else ""),
            "questions that were learned are answered from memory: new ones will be answered worse than the score says",
            [
                Cure("luthier data clean FILE takes them out of the training rows; then train and evaluate again"),
                Cure("hold rows out by what they are about: luthier data split"),
            ],
            {
                "held_out": len(held_out),
                "rows": [[evidence.run.named(one.source), evidence.run.named(one.other)] for one in found.worst if one.other],
                **found.numbers,
            },
        )
    ]


def _score_too_good(evidence: Evidence) -> str:
    tuned = evidence.scorecard.models.get("tuned", {}) if evidence.scorecard else {}
    named = [f"{name} {tuned[name].value:.1%}" for name in evidence.settings.evaluation.metrics if name in tuned and tuned[name].value >= TOO_GOOD]
    return ", ".join(named)


def truncation(evidence: Evidence) -> list[Finding] | str:
    """Rows, or parts of rows, that did not fit into max_length."""
    rows, tokens = evidence.ledger.get("rows"), evidence.ledger.get("tokens")
    if not rows or not tokens:
        return "the run has no ledger"
    replayed = _replayed(evidence)
    gone = int(rows.get("rejected", {}).get("too_long", 0)) - sum(int(one["rejected"].get("too_long", 0)) for one in replayed)
    own_rows = rows["read"] - sum(one["rows"] for one in replayed)
    cut, own = (tokens[name] - sum(one["tokens"][name] for one in replayed) for name in ("cut", "read"))
    cut_share = cut / own if own else 0.0
    if cut_share < CUT_SHARE and gone <= TOO_LONG_SHARE * own_rows:
        return []
    now, room = int(evidence.ledger.get("max_length", 0)), evidence.model.context if evidence.model else 0
    lost = [f"{cut:,} of {own:,} tokens ({cut_share:.1%}) were cut" if cut else ""]
    lost.append(f"{gone:,} of {own_rows:,} rows were left out as too long" if gone else "")
    longer = min(room, 2 * now) if now else 0
    wider = [Cure(f"longer rows: data.max_length={longer} (the model reads {room:,} tokens)", {"data.max_length": longer})] if longer > now else []
    return [
        Finding(
            "truncation",
            "warning",
            "rows that were cut",
            f"{', '.join(part for part in lost if part)} (data.max_length: {now:,}, data.too_long: {evidence.settings.data.too_long})",
            "what is cut is not learned, and answers without their question teach guessing",
            [*wider, Cure("cut between turns and windows, so that nothing is lost: data.too_long=split", {"data.too_long": "split"})],
            {"cut": cut, "read": own, "too_long": gone, "max_length": now},
        )
    ]


def imbalance(evidence: Evidence) -> list[Finding] | str:
    """One source gives nearly all that is trained, and another nearly nothing."""
    sources = [one for one in evidence.ledger.get("sources", []) if one.get("tokens", {}).get("trained") and not one.get("replay")]
    if len(sources) < 2:
        return [] if evidence.ledger else "the run has no ledger"
    total = sum(one["tokens"]["trained"] for one in sources)
    shares = {str(one["file"]): one["tokens"]["trained"] / total for one in sources}
    small = {name: share for name, share in shares.items() if share < SMALL_SOURCE / len(shares)}
    if not small:
        return []
    largest = max(shares, key=shares.__getitem__)
    said = ", ".join(f"{name} {share:.1%}" for name, share in small.items())
    return [
        Finding(
            "source_imbalance",
            "warning",
            "a source that is hardly there",
            f"of the trained tokens {largest} has {shares[largest]:.0%}, and {said}",
            "what is rare is learned last and forgotten first: the model becomes the large source",
            [
                Cure(f"give it weight: data.train with a weight of {_weight(min(small.values()), len(shares)):g} for it", _weighted(evidence, small)),
                Cure("luthier data mix writes one file in the shares that you name"),
            ],
            {"shares": {name: round(share, 5) for name, share in shares.items()}},
        )
    ]


def _weight(share: float, sources: int) -> float:
    """What lifts a source to half of an equal share; at most 10, since a row that is seen more often is learned by heart."""
    return float(min(10, max(2, round(0.5 / sources / share))))


def _weighted(evidence: Evidence, small: dict[str, float]) -> dict[str, Any]:
    """data.train with weights for the small sources; nothing where a source of the settings is several files."""
    paths = {str(one["path"]): str(one["file"]) for one in evidence.ledger["sources"]}
    given = evidence.settings.data.sources
    if not all(source.path in paths for source in given):
        return {}
    count = len(evidence.ledger["sources"])

    def told(path: str, weight: float) -> float:
        return _weight(small[paths[path]], count) if paths[path] in small else weight

    return {"data.train": [source.model_dump(exclude_defaults=True) | {"weight": told(source.path, source.weight)} for source in given]}


def suspect_rows(run: RunFolder, findings: Sequence[Finding], train: Sequence[Conversation]) -> list[dict[str, Any]]:
    """The lines of suspect_rows.jsonl: where each row stands, why it is there, its losses, and what it says; those of the highest loss first."""
    why: dict[str, list[str]] = {}
    losses: dict[str, dict[str, Any]] = {}
    for finding in findings:
        if finding.id == "noisy_labels":
            for row in finding.evidence["rows"]:
                why.setdefault(row["row"], []).append(f"its loss is {row['loss']:.2f}, above {finding.evidence['limit']:.2f}")
                losses[row["row"]] = row
        if finding.id == "conflicting_answers":
            for name in finding.evidence["rows"]:
                why.setdefault(name, []).append("another row asks the same and answers differently")
    rows = {name: row for row in train if (name := run.named(row.source)) in why} if why else {}
    return [_suspect(name, rows.get(name), reasons, losses.get(name, {})) for name, reasons in why.items()]


def _suspect(name: str, row: Conversation | None, why: list[str], known: dict[str, Any]) -> dict[str, Any]:
    file, _, line = name.rpartition(":")
    told: dict[str, Any] = {"file": row.source.file if row else file, "line": int(line), "why": why}
    if known:
        told |= {"loss": known["loss"], "losses": known["losses"]}
    if row:
        told["messages"] = [{"role": turn.role, "content": turn.content} for turn in row.turns]
    return told
