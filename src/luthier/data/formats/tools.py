"""Tools and their calls: read, and checked against each other. What the template is handed is the JSON that the row holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.formats.said import Said
from luthier.data.formats.unfit import Unfit, from_json, kind, listed, near, need, shown, text

COLUMNS = ("tools", "functions")
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


def tools_of(value: Mapping[str, Any]) -> tuple[str, list[Any]]:
    """The column and the tools that a row tells the model of: a list, or its JSON text; empty where there are none."""
    given = [column for column in COLUMNS if value.get(column) not in (None, "", [])]
    if not given:
        return "tools", []
    if len(given) > 1:
        raise Unfit("two_lists_of_tools", "functions", 'stands beside "tools", which is the same thing; keep one of them')
    [column] = given
    found = value[column]
    tools = listed(from_json(found, column) if isinstance(found, str) else found, column)
    for number, tool in enumerate(tools):
        _name(tool, f"{column}[{number}]")
    return column, tools


def calls_of(value: object, path: str) -> list[Any]:
    """OpenAI's `tool_calls`, as they are. Each names a function and gives it arguments: a JSON object, or its text."""
    calls = listed(value, path)
    for number, call in enumerate(calls):
        at = f"{path}[{number}]"
        _object(call, at)
        if call.get("type", "function") != "function":
            raise Unfit("unknown_call", f"{at}.type", f'is {shown(call["type"])}; only "function" is known')
        if call.get("id") is not None:
            text(call["id"], f"{at}.id")
        _check_function(need(call, "function", at), f"{at}.function")
    return calls


def call_of(value: object, path: str) -> dict[str, Any]:
    """A bare {"name", "arguments"}, as ShareGPT and OpenAI's old `function_call` write it, as one entry of `tool_calls`."""
    _check_function(value, path)
    return {"type": "function", "function": value}


def arguments_of(function: Mapping[str, Any], path: str) -> dict[str, Any]:
    """The arguments of a called function as an object. `path` is their field."""
    found = function["arguments"]
    value = from_json(found, path) if isinstance(found, str) else found
    if not isinstance(value, dict):
        raise Unfit("arguments_not_an_object", path, f'is {kind(value)}, not a JSON object such as {{"city": "Paris"}}; name each argument')
    return value


def check(said: Sequence[Said], column: str, tools: Sequence[Any]) -> None:
    """Calls name tools that the row has, with arguments that these take; each result belongs to a call before it, by id where there are ids."""
    known = {_name(tool, f"{column}[{number}]"): tool.get("function", tool) for number, tool in enumerate(tools)}
    open_ids: list[Any] = []
    for one in said:
        if one.role == "tool":
            open_ids = _answered(one, open_ids)
            continue
        _check_answered(one, open_ids)
        open_ids = [call.get("id") for call in one.calls]
        twice = next((number for number, id in enumerate(open_ids) if id is not None and id in open_ids[:number]), None)
        if twice is not None:
            raise Unfit(
                "call_id_twice", f"{one.path}.tool_calls[{twice}].id", f"is {shown(open_ids[twice])} as another call's; each call has its own"
            )
        for number, call in enumerate(one.calls):
            if known:
                _check_against(call, known, f"{one.path}.tool_calls[{number}]")


def _answered(result: Said, open_ids: list[Any]) -> list[Any]:
    """The calls that are still without a result after this one."""
    id, at = result.extra.get("tool_call_id"), f"{result.path}.tool_call_id"
    if not open_ids:
        raise Unfit("tool_result_without_call", result.path, "is a tool's result, and no call before it waits for one; put it behind its call")
    if id is None:
        if open_ids[0] is None:
            return open_ids[1:]
        raise Unfit("missing_call_id", at, f"is missing; the call that it answers has the id {shown(open_ids[0])}: write that")
    if id not in open_ids:
        ids = [str(one) for one in open_ids if one is not None]
        have = f"waiting calls: {', '.join(ids)}" if ids else "the calls before it have no id: give them one each"
        raise Unfit("tool_result_without_call", at, f"is {shown(id)}, which no waiting call has; {have}{near(id, ids)}")
    return [one for one in open_ids if one != id]


def _check_answered(one: Said, open_ids: Sequence[Any]) -> None:
    waiting = [id for id in open_ids if id is not None]
    if waiting:
        raise Unfit("tool_call_without_result", one.path, f"follows, but the call {shown(waiting[0])} has no result yet; add a tool message with it")


def _check_against(call: dict[str, Any], known: Mapping[str, Any], path: str) -> None:
    name = call["function"]["name"]
    if name not in known:
        has = f"the row's tools are {', '.join(list(known)[:12])}"
        raise Unfit("unknown_tool", f"{path}.function.name", f"is {shown(name)}; {has}{near(name, known)}")
    schema = known[name].get("parameters")
    if not isinstance(schema, dict):
        return
    at = f"{path}.function.arguments"
    arguments = arguments_of(call["function"], at)
    required, properties = schema.get("required"), schema.get("properties")
    for one in required if isinstance(required, list) else []:
        if isinstance(one, str) and one not in arguments:
            raise Unfit("arguments_do_not_fit", at, f"has no {shown(one)}, which {name} requires{near(one, arguments)}; add it")
    for argument, value in arguments.items():
        if isinstance(properties, dict):
            _check_argument(argument, value, properties, schema.get("additionalProperties") is False, at, name)


def _check_argument(argument: str, value: object, properties: dict[str, Any], closed: bool, path: str, name: str) -> None:
    if argument not in properties:
        if closed:
            raise Unfit("arguments_do_not_fit", f"{path}.{argument}", f"is no argument of {name}{near(argument, properties)}; leave it out")
        return
    asked = properties[argument].get("type") if isinstance(properties[argument], dict) else None
    types = TYPES.get(asked) if isinstance(asked, str) else None
    fits = types is None or (isinstance(value, types) and isinstance(value, bool) == (asked == "boolean"))
    if not fits and not (asked == "integer" and isinstance(value, float) and value.is_integer()):
        raise Unfit("arguments_do_not_fit", f"{path}.{argument}", f"is {shown(value)}; {name} takes {asked} here: write that")


def _check_function(value: object, path: str) -> None:
    function = _object(value, path)
    if not text(need(function, "name", path), f"{path}.name").strip():
        raise Unfit("unnamed_tool", f"{path}.name", "is empty; write the name of the tool that is called")
    need(function, "arguments", path)
    arguments_of(function, f"{path}.arguments")


def _name(tool: object, path: str) -> str:
    """The name of a tool, described as OpenAI does ({"type": "function", "function": {...}}) or by its function alone."""
    described = _object(tool, path)
    if "function" in described:
        path = f"{path}.function"
        described = _object(described["function"], path)
    if not (name := text(need(described, "name", path), f"{path}.name")).strip():
        raise Unfit("unnamed_tool", f"{path}.name", "is empty; write the tool's name")
    return name


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Unfit("not_an_object", path, f"is {shown(value)}, not an object; write it as {{...}}")
    return value
