"""Answers that are JSON. JSON means the answer alone: text around it, or a ```json fence, makes it invalid, because the program that
reads it would fail too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError, DataError

NOT_JSON = object()


def exact_match(expected: str, answer: str) -> float:
    """1 where the answer is the expected one but for space around it.

    Where the expected one is a JSON object or list, the parsed values are compared: spacing and the order of keys do not count, the
    spelling of a number does (1 is not 1.0, and neither is true).
    """
    if expected.strip() == answer.strip():
        return 1.0
    wanted = parse(expected)
    return float(isinstance(wanted, dict | list) and _same(wanted, parse(answer)))


def valid_json(expected: str, answer: str) -> float:
    """1 where the answer parses as a JSON object. A ```json fence, words around it, NaN and Infinity are not JSON."""
    return float(isinstance(parse(answer), dict))


def field_f1(expected: str, answer: str) -> float:
    """F1 of the row's (key, value) pairs: 2 * equal pairs / (pairs expected + pairs answered). 0 where the answer is no JSON object.

    Raises DataError where the expected answer is no JSON object.
    """
    wanted, given = parse(expected), parse(answer)
    if not isinstance(wanted, dict):
        raise DataError(
            f"field_f1 compares the fields of JSON objects, and an expected answer is {expected[:60]!r}",
            where="evaluation.metrics",
            next_step="take field_f1 out, or let every answer of the rows be a JSON object",
        )
    if not isinstance(given, dict):
        return 0.0
    equal = sum(key in given and _same(value, given[key]) for key, value in wanted.items())
    return 2 * equal / (len(wanted) + len(given)) if wanted or given else 1.0


def follows_schema(file: str, beside: Path) -> Callable[[str, str], float]:
    """1 where the answer is JSON that the JSON Schema in `file` allows. Raises ConfigError where that is no schema."""
    try:
        import jsonschema
    except ImportError as error:
        raise ConfigError("jsonschema is not installed", where=f"json_schema={file}", next_step='pip install "luthier[eval]"') from error
    path = beside / file
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        kind = jsonschema.validators.validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", where=f"json_schema={path}", next_step="name the file of a JSON Schema") from error
    except (ValueError, jsonschema.SchemaError) as error:
        raise ConfigError(f"is no JSON Schema: {error}"[:200], where=f"json_schema={path}", next_step="mend the schema") from error
    checker = kind(schema)

    def follows(expected: str, answer: str) -> float:
        value = parse(answer)
        return float(value is not NOT_JSON and checker.is_valid(value))

    return follows


def parse(text: str) -> Any:
    """The JSON value of a text, or NOT_JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return NOT_JSON


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _same(one: Any, other: Any) -> bool:
    """Equal as JSON. Python's own equality takes 1, 1.0 and true for the same."""
    if other is NOT_JSON:
        return False
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)
