"""One message of a chat, in the names of OpenAI (role, content) and of ShareGPT (from, value), and what it may hold beside text."""

from typing import Any

from luthier.data.formats import tools
from luthier.data.formats.book import Book
from luthier.data.formats.said import Said
from luthier.data.formats.unfit import Unfit, from_json, listed, near, need, shown, text

# As they are written in files, in any case -> as templates know them.
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "calling",
    "tool_call": "calling",
}
SPEAKER_KEYS = (("role", "content"), ("from", "value"))
# Handed to the template under their own names.
PASSED_ON = ("name", "tool_call_id", "reasoning_content", "thinking")
TRAINED_KEYS = ("train", "weight", "loss_weight")
READ_KEYS = {"role", "content", "from", "value", "tool_calls", "function_call", *PASSED_ON, *TRAINED_KEYS}
TEXT_PARTS = ("text", "input_text", "output_text")
MEDIA_PARTS = ("image", "image_url", "input_image", "audio", "audio_url", "input_audio", "video", "video_url", "input_video", "file", "input_file")
MEDIA_COLUMNS = ("images", "image", "audios", "audio", "videos", "video")


def read_messages(value: object, path: str, book: Book) -> list[Said]:
    """A list of messages."""
    return [read_message(message, f"{path}[{number}]", book) for number, message in enumerate(listed(value, path))]


def read_message(message: object, path: str, book: Book) -> Said:
    """One message. What it says of its training (train, weight) is kept; keys that nothing reads are noted."""
    if not isinstance(message, dict):
        raise Unfit("not_a_message", path, f'is {shown(message)}, not an object; write {{"role": ..., "content": ...}}')
    for key in message.keys() - READ_KEYS:
        book.ignored(f"{path.partition('[')[0]}[].{key}" if "[" in path else str(key))
    keys = next((pair for pair in SPEAKER_KEYS if pair[0] in message), SPEAKER_KEYS[0])
    role = _role(need(message, keys[0], path), f"{path}.{keys[0]}")
    extra: dict[str, Any] = {key: text(message[key], f"{path}.{key}") for key in PASSED_ON if message.get(key) is not None}
    calls = _calls(message, path)
    if role == "calling":
        found = from_json(text(need(message, keys[1], path), f"{path}.{keys[1]}"), f"{path}.{keys[1]}")
        calls += [tools.call_of(one, f"{path}.{keys[1]}") for one in (found if isinstance(found, list) else [found])]
        role, content = "assistant", ""
    else:
        content = _content(message, keys[1], path, extra, calls)
    if calls:
        if role != "assistant":
            raise Unfit("unexpected_call", path, f"is a tool call by the {role}; only the assistant calls tools")
        extra["tool_calls"] = calls
    _check_says_something(content, role, f"{path}.{keys[1]}", has_calls=bool(calls))
    return Said(path, role, content, _trained(message, path), extra)


def refuse_media(value: dict[str, Any]) -> None:
    """Pictures, sound and film beside the messages: a text model would learn to answer what it cannot see."""
    for column in MEDIA_COLUMNS:
        if value.get(column) not in (None, "", []):
            found = value[column]
            held = f"{len(found)} of them ({shown(found[0])} ...)" if isinstance(found, list) else shown(found)
            raise Unfit("not_only_text", column, f"holds {held}; only text is trained here: leave the row out, or put what is in them into words")


def _role(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise Unfit("unknown_role", path, f"is {shown(value)}; write a role such as user or assistant")
    role = ROLES.get(value) or ROLES.get(value.casefold())
    if role is None:
        raise Unfit("unknown_role", path, f"is {shown(value)}; known are {', '.join(ROLES)}{near(value.casefold(), ROLES)}")
    return role


def _calls(message: dict[str, Any], path: str) -> list[Any]:
    given = message.get("tool_calls")
    calls = [] if given is None else list(tools.calls_of(given, f"{path}.tool_calls"))
    if message.get("function_call") is not None:
        calls.append(tools.call_of(message["function_call"], f"{path}.function_call"))
    return calls


def _content(message: dict[str, Any], key: str, path: str, extra: dict[str, Any], calls: list[Any]) -> str:
    """The text; parts are joined as they stand. Beside a tool call there may be none."""
    at = f"{path}.{key}"
    if message.get(key) is None and calls:
        return ""
    value = need(message, key, path)
    if isinstance(value, list):
        return "".join(_part(part, f"{at}[{number}]", extra, calls) for number, part in enumerate(value))
    return text(value, at)


def _part(part: object, path: str, extra: dict[str, Any], calls: list[Any]) -> str:
    """One part of a content that is a list. LLaMA-Factory's parts hold their text under "value"."""
    if not isinstance(part, dict):
        raise Unfit("not_text", path, f'is {shown(part)}, not an object; write {{"type": "text", "text": ...}}')
    name = need(part, "type", path)
    if name in MEDIA_PARTS:
        raise Unfit("not_only_text", f"{path}.type", f"is {shown(name)}; only text is trained here: leave the row out, or put it into words")
    key = "text" if "text" in part else "value"
    if name == "tool_call":
        calls.append(tools.call_of(from_json(text(need(part, key, path), f"{path}.{key}"), f"{path}.{key}"), f"{path}.{key}"))
        return ""
    if name == "reasoning":
        extra["reasoning_content"] = extra.get("reasoning_content", "") + text(need(part, key, path), f"{path}.{key}")
        return ""
    if name not in TEXT_PARTS:
        raise Unfit("not_text", f"{path}.type", f"is {shown(name)}; known are text, reasoning and tool_call")
    return text(need(part, key if key in part else "text", path), f"{path}.{key}")


def _check_says_something(content: str, role: str, path: str, has_calls: bool) -> None:
    # An empty system message is a choice (it keeps a template from putting in its own); a tool may give nothing back.
    if content.strip() or has_calls or role in ("system", "tool"):
        return
    if role == "assistant":
        raise Unfit("empty_answer", path, f"is {shown(content)}, so there is nothing to learn; write the answer, or leave the row out")
    raise Unfit("empty_prompt", path, f"is {shown(content)}, so nothing is asked; write the question, or leave the row out")


def _trained(message: dict[str, Any], path: str) -> bool | None:
    given = {key: _is_trained(message[key], key, f"{path}.{key}") for key in TRAINED_KEYS if message.get(key) is not None}
    if len(set(given.values())) > 1:
        raise Unfit("trained_or_not", path, f"says both that it is trained and that it is not ({', '.join(given)}); keep one of them")
    return next(iter(given.values()), None)


def _is_trained(value: object, key: str, path: str) -> bool:
    if key == "train" and not isinstance(value, bool):
        raise Unfit("not_true_or_false", path, f"is {shown(value)}, which is neither true nor false; write true or false without quotes")
    if key != "train" and (isinstance(value, bool) or not isinstance(value, int | float) or value not in (0, 1)):
        raise Unfit("weight_out_of_range", path, f"is {shown(value)}; write 1 (trained) or 0 (not trained), nothing between them")
    return bool(value)
