"""The body of a request as a record: JSON in its strict form, no deeper than need be, every field known."""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from luthier.serve.asked import without_meaning
from luthier.serve.faults import Fault, bad_request

Model = TypeVar("Model", bound=BaseModel)
MOST_DEPTH = 32
LONGEST_NUMBER = 400


def read(body: bytes, content_type: str, encoding: str, model: type[Model]) -> Model:
    """The request in `body`. Raises a Fault (4xx) that names the field, the value's fault and what is expected."""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise Fault(415, "not_json", "send JSON, with Content-Type: application/json")
    if encoding not in ("", "identity"):
        raise Fault(415, "compressed", "send the body as it is, without Content-Encoding")
    value = _parse(body)
    if not isinstance(value, dict):
        raise bad_request("body", "is no JSON object", 'send {"model": ..., ...}')
    try:
        return model.model_validate_json(json.dumps(without_meaning(value)))
    except ValidationError as error:
        wrong = error.errors()[0]
        param = ".".join(str(part) for part in wrong["loc"] if not str(part).startswith(("function-", "constrained-", "list[")))
        problem = "is not known here" if wrong["type"] == "extra_forbidden" else str(wrong["msg"])
        raise bad_request(param, problem, "see /docs for what each field may be") from error


def _parse(body: bytes) -> Any:
    def refuse(name: str) -> Any:
        raise bad_request("body", f"{name} is no JSON", "send numbers that are finite")

    def number(text: str) -> int:
        if len(text) > LONGEST_NUMBER:
            raise bad_request("body", f"a number has {len(text)} digits", "send smaller numbers")
        return int(text)

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
            raise bad_request(twice[:80], "stands twice in one object", "send each field once")
        return found

    try:
        text = body.decode("utf-8")
        _check_depth(text)
        value = json.loads(text, parse_constant=refuse, parse_int=number, object_pairs_hook=once)
        _check_text(value)
    except UnicodeError as error:
        raise bad_request("body", "is not UTF-8 text", "send UTF-8, without lone surrogates") from error
    except ValueError as error:
        raise bad_request("body", f"is not whole JSON ({error})"[:200], "send one JSON object") from error
    return value


def _check_depth(text: str) -> None:
    """Before it is parsed: Python's parser would run out of its stack."""
    depth = deepest = 0
    in_string = escaped = False
    for character in text:
        if in_string:
            in_string = escaped or character != '"'
            escaped = character == "\\" and not escaped
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    if deepest > MOST_DEPTH:
        raise bad_request("body", f"is nested {deepest} deep, and {MOST_DEPTH} are allowed", "send it flatter")


def _check_text(value: Any) -> None:
    """Lone surrogates are no text: a tokenizer would fail on them."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for name, one in value.items():
            name.encode("utf-8")
            _check_text(one)
    elif isinstance(value, list):
        for one in value:
            _check_text(one)
