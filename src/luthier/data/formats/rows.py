"""Formats with one conversation a row: each function makes a draft of the row's columns."""

import json
from collections.abc import Iterable, Sequence

from luthier.data.formats import order, tools
from luthier.data.formats.book import Book
from luthier.data.formats.message import read_message, read_messages, refuse_media
from luthier.data.formats.said import Draft, Said, turns
from luthier.data.formats.unfit import Unfit, Value, answer, need, optional_list, optional_text, question, shown, text
from luthier.records import Turn

RAW = "prompts are used as plain text, without a chat template (for a chat: data.columns: {question: prompt, answer: completion})"


def messages(value: Value, book: Book) -> list[Draft]:
    """OpenAI's chats: {"messages": [{"role", "content", ...}], "tools": [...]}."""
    return [chat(read_messages(need(value, "messages"), "messages", book), value, book)]


def sharegpt(value: Value, book: Book) -> list[Draft]:
    """ShareGPT's chats: {"conversations": [{"from", "value"}], "system", "tools"}; function_call and observation turns are tool calls."""
    return [chat(read_messages(need(value, "conversations"), "conversations", book), value, book)]


def alpaca(value: Value, book: Book) -> list[Draft]:
    """Alpaca's tasks: the user's turn is the instruction, a blank line and the input; `history` holds earlier pairs."""
    need(value, "output")
    return [chat([*asked(value, book), Said("output", "assistant", answer(value["output"], "output"))], value, book)]


def dolly(value: Value, book: Book) -> list[Draft]:
    """Dolly's tasks: the user's turn is the instruction, a blank line and the context."""
    response = answer(need(value, "response"), "response")
    return [chat([_task(value, "instruction", "context"), Said("response", "assistant", response)], value, book)]


def question_answer(value: Value, book: Book) -> list[Draft]:
    """A question and its answer, as a chat of two turns."""
    asked_for = question(need(value, "question"), "question")
    return [chat([Said("question", "user", asked_for), Said("answer", "assistant", answer(need(value, "answer"), "answer"))], value, book)]


def completion(value: Value, book: Book) -> list[Draft]:
    """A prompt and what follows it: as plain text without a template, or both as lists of messages, which are a chat."""
    prompt, completed = need(value, "prompt"), need(value, "completion")
    if isinstance(prompt, list) or isinstance(completed, list):
        said = read_messages(prompt, "prompt", book) + read_messages(completed, "completion", book)
        return [chat(said, value, book)]
    refuse_media(value)
    not_read(value, ("system", *tools.COLUMNS), book)
    book.remark(RAW)
    return [Draft((Turn("prompt", question(prompt, "prompt")), Turn("completion", answer(completed, "completion"))), templated=False)]


def plain_text(value: Value, book: Book) -> list[Draft]:
    """Text to go on training with, as it stands."""
    refuse_media(value)
    return [Draft((Turn("text", answer(need(value, "text"), "text")),), templated=False)]


def chat(said: Sequence[Said], value: Value, book: Book) -> Draft:
    """Messages as a draft, with the row's system prompt and tools, mended or checked as the settings say."""
    refuse_media(value)
    column, known = tools.tools_of(value)
    return Draft(settled(said, value, column, known, book), tools=json.dumps(known, ensure_ascii=False) if known else "")


def settled(said: Sequence[Said], value: Value, column: str, known: Sequence[object], book: Book) -> tuple[Turn, ...]:
    """The messages of one conversation in order, each checked."""
    if system := optional_text(value, "system"):
        said = [Said("system", "system", system), *said]
    if not book.strict:
        said = order.mend(said, book)
    order.check(said)
    tools.check(said, column, known)
    return turns(said)


def asked(value: Value, book: Book) -> list[Said]:
    """Alpaca's question: its history, then the instruction with the input."""
    said = []
    for number, pair in enumerate(optional_list(value.get("history"), "history")):
        path = f"history[{number}]"
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unfit("not_a_pair", path, f'is {shown(pair)}, not a pair; write ["question", "answer"]')
        said += [Said(f"{path}[0]", "user", question(pair[0], f"{path}[0]")), Said(f"{path}[1]", "assistant", answer(pair[1], f"{path}[1]"))]
    return [*said, _task(value, "instruction", "input")]


def one_or_more(value: object, path: str, role: str, book: Book) -> list[Said]:
    """What one side says: a text, a message, or a list of messages."""
    if isinstance(value, list):
        return read_messages(value, path, book)
    if isinstance(value, dict):
        return [read_message(value, path, book)]
    return [Said(path, role, (answer if role == "assistant" else question)(value, path))]


def not_read(value: Value, columns: Iterable[str], book: Book) -> None:
    """Note the columns that say something and that this row's kind has no place for."""
    for column in columns:
        if value.get(column) not in (None, "", []):
            book.ignored(column)


def _task(value: Value, instruction: str, beside: str) -> Said:
    parts = [text(need(value, instruction), instruction), optional_text(value, beside)]
    return Said(instruction, "user", question("\n\n".join(part for part in parts if part), instruction))
