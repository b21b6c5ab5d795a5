"""The ledger as HTML: what became of every row and every token."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.diagnose.page import table, text

# What a source's books may hold, in the order of the page.
SOURCE_COLUMNS = {
    # key         heading
    "file": "File",
    "format": "Format",
    "rows": "Rows read",
    "used": "Used",
    "rejected": "Set aside",
    "weight": "Weight",
    "tokens": "Tokens",
    "bytes": "Bytes",
}


def ledger_html(ledger: Mapping[str, Any]) -> str:
    """The books: what became of every row and every token, the sums spelled out, and each source by itself."""
    rows, tokens = ledger["rows"], ledger.get("tokens")
    sums = _sum_line("rows", rows["read"], {"used": rows["used"], "set aside": sum(rows["rejected"].values())})
    lines = [["Rows", "read", f"{rows['read']:,}"]]
    lines += [["", f"used ({kind})", f"{rows[kind]:,}"] for kind in ("train", "eval") if kind in rows] or [["", "used", f"{rows['used']:,}"]]
    lines += [["", f"set aside: {reason.replace('_', ' ')}", f"{count:,}"] for reason, count in rows["rejected"].items()]
    if tokens:
        lines += [["Tokens" if name == "read" else "", name, f"{count:,}"] for name, count in tokens.items()]
        sums += _sum_line("tokens", tokens["read"], {name: tokens[name] for name in ("trained", "masked", "cut")}, tokens["repeated"])
    return sums + table(["", "What became of them", "Number"], lines) + _sources(ledger.get("sources", []))


def _sum_line(what: str, read: int, parts: dict[str, int], repeated: int = 0) -> str:
    """The sum spelled out, so that a reader can check that nothing was lost. `repeated`: contexts that stand in several examples."""
    whole = f"{read:,} {what} read" + (f" + {repeated:,} repeated" if repeated else "")
    spelled = " + ".join(f"{count:,} {name}" for name, count in parts.items())
    if sum(parts.values()) == read + repeated:
        return f"<p>{text(whole)} = {text(spelled)}</p>"
    return f'<p class="bad">{text(whole)} are not {text(spelled)}</p>'


def _sources(sources: Sequence[Mapping[str, Any]]) -> str:
    keys = [key for key in SOURCE_COLUMNS if any(key in source for source in sources)]
    if not keys:
        return ""
    return table([SOURCE_COLUMNS[key] for key in keys], [[_cell(source.get(key, "")) for key in keys] for source in sources])


def _cell(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
