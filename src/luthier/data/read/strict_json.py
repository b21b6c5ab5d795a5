"""JSON as its standard has it (RFC 8259), read strictly: what Python's reader would let pass or drop silently is named, with its path.

Not allowed: NaN and infinities (1e999 too), a key given twice, half of a surrogate pair, nesting over MOST_DEEP.
"""

import json
import math
import re
from typing import Any

MOST_DEEP = 64
BLANKS = " \t\r\n"
SURROGATE = re.compile("[\ud800-\udfff]")


class Flaw(Exception):
    """What is wrong with one row: a short name that is counted, and a sentence."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


class NotJson(Flaw):
    """The text ends too early or is miswritten: where the value ends cannot be known. `at` is the character."""

    def __init__(self, reason: str, detail: str, at: int) -> None:
        super().__init__(reason, detail)
        self.at = at


class _Bad:
    """Stands in the value where Python's reader found something that may not be there."""

    def __init__(self, reason: str, said: str) -> None:
        self.reason, self.said = reason, said


def decode(text: str) -> Any:
    """The one value that `text` holds. Raises Flaw."""
    start = len(text) - len(text.lstrip(BLANKS))
    value, end, flaw = Decoder().value_at(text, start)
    if flaw:
        raise flaw
    if text[end:].strip(BLANKS):
        raise more_text(text, end)
    return value


def more_text(text: str, end: int) -> Flaw:
    """The flaw of a line that goes on after its value has ended at `end`."""
    if text[end] == "\r":
        return Flaw("lone_cr", "rows are parted by CR alone (old Macintosh line ends); tr '\\r' '\\n' < FILE > NEW mends it")
    if text[end] == "\0":
        return Flaw("nul_bytes", f"a NUL byte stands at column {end + 1}")
    if text[end] == ",":
        return Flaw("not_json", f"a comma stands after the row (column {end + 1}): in .jsonl the line's end parts the rows; take it out")
    return Flaw("not_json", f"more text after the row's end (column {end + 1}): one object a line, please")


class Decoder:
    """Reads many values one after the other."""

    def __init__(self) -> None:
        self._is_bad = False
        self._json = json.JSONDecoder(object_pairs_hook=self._pairs, parse_constant=self._constant, parse_float=self._float)

    def value_at(self, text: str, at: int) -> tuple[Any, int, Flaw | None]:
        """The value that begins at `at`, where it ends, and what is wrong inside it. Raises NotJson where it has no end."""
        self._is_bad = False
        try:
            value, end = self._json.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise _not_json(error, text) from error
        except RecursionError as error:
            raise NotJson("too_deep", f"lists or objects are nested more than {MOST_DEEP} deep", at) from error
        except ValueError as error:
            raise NotJson("bad_number", "a number has more digits than can be read", at) from error
        return value, end, self._flaw(value, text, at, end)

    def _flaw(self, value: Any, text: str, at: int, end: int) -> Flaw | None:
        if text.count("{", at, end) + text.count("[", at, end) > MOST_DEEP and _is_deep(value):
            return Flaw("too_deep", f"lists or objects are nested more than {MOST_DEEP} deep")
        if self._is_bad:
            path, bad = next(found for found in walk(value) if isinstance(found[1], _Bad))
            return Flaw(bad.reason, bad.said + (f" ({path})" if path else ""))
        if text.find("\\ud", at, end) >= 0 or text.find("\\uD", at, end) >= 0:
            return surrogate_flaw(value)
        return None

    def _pairs(self, pairs: list[tuple[str, Any]]) -> Any:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            return self._constant_of("duplicate_key", f'the key "{twice}" is given twice')
        return value

    def _constant(self, name: str) -> _Bad:
        return self._constant_of("not_a_number", f"{name} is not a JSON value")

    def _float(self, digits: str) -> float | _Bad:
        value = float(digits)
        return value if math.isfinite(value) else self._constant_of("not_a_number", f"{digits[:40]} is too large for a number")

    def _constant_of(self, reason: str, said: str) -> _Bad:
        self._is_bad = True
        return _Bad(reason, said)


def walk(value: Any) -> list[tuple[str, Any]]:
    """Every key and every value that is no list or object, in order, with its path (messages[2].content)."""
    found: list[tuple[str, Any]] = []
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        path, part = waiting.pop()
        if isinstance(part, dict):
            inside = [(f"{path}.{key}" if path else key, item) for key, item in part.items()]
            found.extend((place, key) for (place, _), key in zip(inside, part, strict=True))
            waiting.extend(reversed(inside))
        elif isinstance(part, list | tuple):
            waiting.extend((f"{path}[{number}]", part[number]) for number in range(len(part) - 1, -1, -1))
        else:
            found.append((path, part))
    return found


def surrogate_flaw(value: Any) -> Flaw | None:
    """Names the text that holds half of a surrogate pair: it has no UTF-8 form."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
        return None
    except UnicodeEncodeError:
        pass
    for path, part in walk(value):
        if isinstance(part, str) and SURROGATE.search(part):
            place = path.encode("utf-8", "backslashreplace").decode()
            return Flaw("lone_surrogate", f"half of a character (a lone \\ud800-\\udfff escape): it has no UTF-8 form ({place})")
    return None


def number_flaw(value: Any) -> Flaw | None:
    """Names the number that is NaN or infinite."""
    for path, part in walk(value):
        if isinstance(part, float) and not math.isfinite(part):
            return Flaw("not_a_number", f"{part} is not a JSON value ({path})")
    return None


def _is_deep(value: Any) -> bool:
    """Whether lists and objects are nested more than MOST_DEEP deep, without recursion."""
    level, depth = [value], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > MOST_DEEP:
            return True
        level = [inside for part in level for inside in (part.values() if isinstance(part, dict) else part)]
    return False


def _not_json(error: json.JSONDecodeError, text: str) -> NotJson:
    rest = text[error.pos : error.pos + 1]
    if rest == "\0":
        return NotJson("nul_bytes", f"a NUL byte stands at column {error.colno}", error.pos)
    if error.msg.startswith("Unterminated") or not text[error.pos :].strip(BLANKS):
        return NotJson("cut_row", "ends in the middle of a value", error.pos)
    if rest == "\ufeff":
        return NotJson("bom_inside", f"a byte order mark stands at column {error.colno}: files were joined; take it out", error.pos)
    return NotJson("not_json", f"{error.msg} (column {error.colno})", error.pos)
