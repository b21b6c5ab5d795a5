"""Answers whose correctness can be checked: JSON, code, sums, and whatever the user's own check can tell."""

import ast
import json
import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from luthier.data.quality.check import Finding, Given, Look, Note, Noted
from luthier.data.quality.imported import imported
from luthier.data.quality.limits import counted, not_run
from luthier.data.quality.parts import answers_of, excerpt, prompt_of
from luthier.errors import ConfigError
from luthier.records import Conversation

# --- json_answers

MOSTLY = 0.5  # share of the answers: where fewer look like JSON, the others are not meant to be
JSON_BLOCK = re.compile(r"\A```(?:json)?\s*\n(.*?)\n?```\Z", re.DOTALL | re.IGNORECASE)


def start_json(given: Given) -> Look | str:
    wrong_by_schema = _schema_of(given.settings.json_schema) if given.settings.json_schema else None

    def look(row: Conversation) -> Note | None:
        answers = answers_of(row)
        if not answers or '"tool_calls"' in answers[-1].extra:
            return None
        text = answers[-1].content.strip()
        bare = block[1].strip() if (block := JSON_BLOCK.match(text)) else text
        if not bare.startswith(("{", "[")):
            return Note(f"the answer is no JSON: {excerpt(text)}", 1.0, "other")
        try:
            value = json.loads(bare, parse_constant=_refuse)
        except (ValueError, RecursionError) as error:
            return Note(f"{error}: {excerpt(bare, getattr(error, 'pos', 0))}", 2.0, "broken")
        if wrong_by_schema and (wrong := wrong_by_schema(value)):
            return Note(wrong, 1.5, "schema")
        return Note("", 0.0, "good")

    return look


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def _schema_of(file: str) -> Callable[[Any], str | None]:
    """What is wrong with a value, by the schema in the file."""
    try:
        import jsonschema
    except ImportError:
        raise ConfigError("a JSON Schema needs jsonschema", where="checks.json_schema", next_step='pip install "luthier[data]"') from None
    try:
        schema = json.loads(Path(file).read_text(encoding="utf-8"))
        validator = jsonschema.validators.validator_for(schema)
        validator.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        problem = getattr(error, "message", None) or str(error)
        raise ConfigError(f"this is no JSON Schema: {problem}", where=f"checks.json_schema: {file}", next_step="name a file with a schema") from None
    rule = validator(schema)

    def wrong(value: Any) -> str | None:
        error = jsonschema.exceptions.best_match(rule.iter_errors(value))
        return f"{error.json_path}: {excerpt(error.message)}" if error else None

    return wrong


def conclude_json(noted: Noted, given: Given) -> Finding:
    meant = noted.of_kind("good", "broken", "schema")
    answered = len(noted.notes)
    # JSON in prose ("[1] see above") is told by its share too: a set of JSON answers has few others.
    if not given.settings.json_schema and (not answered or len(meant.notes) < MOSTLY * answered or not noted.of_kind("good").notes):
        return not_run(noted.check, "most answers are not JSON")
    wrong = noted.of_kind("broken", "schema", "other")
    kinds = {kind: len(noted.of_kind(kind).notes) for kind in ("good", "broken", "schema", "other")}
    fault = "have an answer that is not valid JSON" + (" or breaks the schema" if given.settings.json_schema else "")
    return counted(wrong, fault, "mend the answers where they are made, or take the rows out: luthier data clean FILE", of=answered, numbers=kinds)


# --- code_answers

BLOCK = re.compile(r"^[ \t]*```[ \t]*(python3?|py|sql|mysql|postgres(?:ql)?|sqlite)[ \t]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE | re.IGNORECASE)
WHOLE_PYTHON = re.compile(r"\A(?:def \w+\(|class \w+[(:]|import [\w.]+(?: as \w+)?(?:, [\w.]+)*$|from [\w.]+ import |@\w+|async def )", re.MULTILINE)
WHOLE_SQL = re.compile(r"\A(?:SELECT|INSERT\s+INTO|UPDATE\s+\w+\s+SET|DELETE\s+FROM|CREATE\s+(?:TABLE|VIEW|INDEX)|ALTER\s+TABLE|WITH\s+\w+\s+AS)\s")
BEGINS_LIKE_SQL = re.compile(r"[A-Z]{3,8}\s")
CONSOLE = re.compile(r"^\s*(?:>>>|\.\.\. |In \[\d+\]|[$%!])", re.MULTILINE)
DIALECTS = (None, "postgres", "mysql", "sqlite", "tsql", "bigquery", "oracle")


def start_code(given: Given) -> Look | str:
    logging.getLogger("sqlglot").setLevel(logging.CRITICAL)

    def look(row: Conversation) -> Note | None:
        for turn in answers_of(row):
            for language, code in _code_in(turn.content, prompt_of(row)):
                wrong = _wrong_sql(code) if language == "sql" else _wrong_python(code)
                if wrong:
                    return Note(f"{language}: {wrong}", 1.0)
        return None

    return look


def _code_in(answer: str, prompt: str) -> Iterator[tuple[str, str]]:
    """The pieces of Python and SQL in an answer: tagged blocks, or the whole of it."""
    if "```" in answer:
        for tag, code in BLOCK.findall(answer):
            yield ("python" if tag.lower().startswith("py") else "sql"), code
        return
    text = answer.strip()
    if WHOLE_SQL.match(text) or (text.endswith(";") and BEGINS_LIKE_SQL.match(text) and "sql" in prompt.lower()):
        yield "sql", text
    elif WHOLE_PYTHON.match(text) and "\n" in text:
        yield "python", text


def _wrong_python(code: str) -> str | None:
    if CONSOLE.search(code):
        return None  # a console session or a notebook cell
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(textwrap.dedent(code))
    except SyntaxError as error:
        line = (error.text or "").strip()
        return f"{error.msg} in line {error.lineno}: {excerpt(line)}"
    except (ValueError, RecursionError, MemoryError) as error:
        return str(error) or "nested too deeply"
    return None


def _wrong_sql(code: str) -> str | None:
    """What is wrong by every dialect; None where one of them reads it, or where sqlglot is missing."""
    try:
        import sqlglot
    except ImportError:
        return None
    first = ""
    for dialect in DIALECTS:
        try:
            sqlglot.parse(code, dialect=dialect)
        except (sqlglot.errors.SqlglotError, RecursionError) as error:
            first = first or str(error).partition("\n")[0]
        else:
            return None
    return re.sub(r"\x1b\[\d*m", "", first)


def conclude_code(noted: Noted, given: Given) -> Finding:
    try:
        import sqlglot  # noqa: F401
    except ImportError:
        without = ' (SQL was not looked at: pip install "luthier[data]")'
    else:
        without = ""
    return counted(noted, "have Python or SQL that does not parse" + without, "mend the code, or take the rows out: luthier data clean FILE")


# --- validator


def start_validator(given: Given) -> Look | str:
    if not given.settings.validator:
        return "no checks.validator is set"
    check = imported("checks.validator", given.settings.validator, "(prompt, answer)")

    def look(row: Conversation) -> Note | None:
        if not (answers := answers_of(row)):
            return None
        try:
            wrong = check(prompt_of(row), answers[-1].content)
        except Exception as error:  # whatever the user's own code raises is said of the row
            return Note(f"the validator raised {type(error).__name__}: {error}", 2.0, "raised")
        return Note(str(wrong), 1.0, "wrong") if wrong is not None else None

    return look


def conclude_validator(noted: Noted, given: Given) -> Finding:
    raised = len(noted.of_kind("raised").notes)
    fault = f"fail {given.settings.validator}" + (f" (it raised on {raised:,} of them)" if raised else "")
    return counted(noted, fault, "mend the answers, or take the rows out: luthier data clean FILE", numbers={"raised": raised})
