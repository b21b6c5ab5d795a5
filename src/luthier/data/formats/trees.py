"""OpenAssistant's trees of messages, nested or with one message a row, and logs with one message a row."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from luthier.data.formats.book import Book
from luthier.data.formats.message import READ_KEYS, read_message, refuse_media
from luthier.data.formats.rows import chat
from luthier.data.formats.said import Draft, Said
from luthier.data.formats.unfit import Unfit, Value, kind, need, optional_list, shown, text
from luthier.records import Row

TIMES = ("time", "timestamp", "created_at", "created_date", "date")


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that belong together, and how their conversations are made. Making them may raise Unfit, which then holds for all of the rows."""

    rows: Sequence[Row]
    make: Callable[[], list[Draft]]


@dataclass(frozen=True, slots=True)
class _Node:
    said: Said
    rank: float  # the best is the lowest; infinite where there is none
    replies: list["_Node"] = field(default_factory=list)


def openassistant_tree(value: Value, book: Book) -> list[Draft]:
    """One tree a row: {"prompt": {"text", "role", "replies": [{"text", "role", "rank", "replies"}]}}."""
    refuse_media(value)
    return _paths(_nested(need(value, "prompt"), "prompt", book), book)


def openassistant(rows: Sequence[Row], book: Book) -> Iterator[Group]:
    """One message a row, joined by `message_id` and `parent_id` into trees. Holds all rows in memory."""
    by_id: dict[Any, Row] = {}
    for row in rows:
        id, parent = row.value.get("message_id"), row.value.get("parent_id")
        problem: Unfit | None = None
        if not isinstance(id, str | int):
            problem = Unfit("no_message_id", "message_id", f"is {shown(id)}; write a text or a whole number")
        elif id in by_id:
            problem = Unfit("message_id_twice", "message_id", f"is {shown(id)} as that of line {by_id[id].source.line}; each message has its own")
        elif parent is not None and not isinstance(parent, str | int):
            problem = Unfit("unknown_parent", "parent_id", f"is {shown(parent)}; write the message_id of the message that this one answers, or null")
        if problem:
            yield _broken([row], problem)
        else:
            by_id[id] = row
    replies: dict[Any, list[Row]] = defaultdict(list)
    for row in by_id.values():
        replies[row.value.get("parent_id")].append(row)
    reached = 0
    for root in replies.pop(None, []):
        tree = _subtree(root, replies)
        reached += len(tree)
        yield Group(tree, lambda tree=tree: _paths(_linked(tree, book), book))  # type: ignore[misc]
    if reached < len(by_id):
        yield from _unreached(by_id, replies)


def message_log(rows: Sequence[Row], book: Book) -> Iterator[Group]:
    """One message a row, in any order: those with one `conversation_id` are a conversation, sorted by their time. Holds all rows in memory."""
    by_id: dict[Any, list[Row]] = {}
    for row in rows:
        id = row.value.get("conversation_id")
        if isinstance(id, str | int) and id != "":
            by_id.setdefault(id, []).append(row)
        else:
            yield _broken([row], Unfit("no_conversation_id", "conversation_id", f"is {shown(id)}; write which conversation the message belongs to"))
    for conversation in by_id.values():
        yield Group(conversation, lambda conversation=conversation: _log(conversation, book))  # type: ignore[misc]


def _broken(rows: Sequence[Row], problem: Unfit) -> Group:
    def make() -> list[Draft]:
        raise problem

    return Group(rows, make)


def _log(rows: Sequence[Row], book: Book) -> list[Draft]:
    column = next((name for name in TIMES if rows[0].value.get(name) is not None), "")
    ordered = sorted(rows, key=lambda row: _seconds(row, column)) if column else rows
    said = []
    for row in ordered:
        message = {key: value for key, value in row.value.items() if key in READ_KEYS}
        if "text" in row.value:
            message["content"] = row.value["text"]
        refuse_media(row.value)
        said.append(_read(message, f"line {row.source.line}", "text" if "text" in row.value else "content", book))
    return [chat(said, {}, book)]


def _read(message: Value, path: str, content: str, book: Book) -> Said:
    """The message; `content` is what its text is called here."""
    try:
        return read_message(message, path, book)
    except Unfit as unfit:
        unfit.path = unfit.path.replace(f"{path}.content", f"{path}.{content}")
        raise


def _seconds(row: Row, column: str) -> float:
    """A time as seconds: a number is taken as it is, a text as ISO 8601 (without a zone: UTC)."""
    value, path = row.value.get(column), f"line {row.source.line}.{column}"
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 else None
    if number is not None and not math.isnan(number):
        return number
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise Unfit("no_time", path, f"is {shown(value)}; write seconds or an ISO 8601 time such as 2026-11-22T14:31:00Z") from error


def _message(value: Value, path: str, book: Book) -> _Node:
    content = text(need(value, "text", path), f"{path}.text")
    said = _read({"role": need(value, "role", path), "content": content}, path, "text", book)
    rank = value.get("rank")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int | float) or not abs(rank) < 1e300):
        raise Unfit("no_rank", f"{path}.rank", f"is {shown(rank)}; write a number, 0 for the best answer")
    return _Node(replace(said, path=path), math.inf if rank is None else float(rank))


def _nested(value: object, path: str, book: Book) -> _Node:
    """A nested tree, read without recursion: replies may be as deep as the file has them."""
    if not isinstance(value, dict):
        raise Unfit("not_a_tree", path, f'is {kind(value)}, not an object; write {{"text", "role", "replies": [...]}}')
    root = _message({"role": "prompter", **value}, path, book)
    open_nodes = [(root, value, path)]
    while open_nodes:
        node, given, at = open_nodes.pop()
        for number, reply in enumerate(optional_list(given.get("replies"), f"{at}.replies")):
            place = f"{at}.replies[{number}]"
            if not isinstance(reply, dict):
                raise Unfit("not_a_tree", place, f"is {kind(reply)}, not an object; write a message with its replies")
            if reply.get("deleted") is True:
                continue
            child = _message(reply, place, book)
            node.replies.append(child)
            open_nodes.append((child, reply, place))
    return root


def _subtree(root: Row, replies: dict[Any, list[Row]]) -> list[Row]:
    """A message and all that stand below it, each behind the one it answers."""
    found = [root]
    for row in found:  # grows while it is walked
        found += replies.pop(row.value["message_id"], [])
    return found


def _linked(rows: Sequence[Row], book: Book) -> _Node:
    if rows[0].value.get("deleted") is True:
        raise Unfit("deleted", "deleted", "is true: the message that all others answer was deleted; leave the tree out")
    nodes: dict[Any, _Node] = {}
    for row in rows:
        parent = row.value.get("parent_id")
        if row.value.get("deleted") is True or (parent is not None and parent not in nodes):
            continue
        refuse_media(row.value)
        node = _message(row.value, f"line {row.source.line}", book)
        nodes[row.value["message_id"]] = node
        if parent is not None:
            nodes[parent].replies.append(node)
    return nodes[rows[0].value["message_id"]]


def _unreached(by_id: dict[Any, Row], replies: dict[Any, list[Row]]) -> Iterator[Group]:
    """Messages below one that is not in the file, or that answer each other in a circle."""
    for parent in [parent for parent in replies if parent not in by_id]:
        for top in replies.pop(parent):
            problem = f"is {shown(parent)}, and no message of the file has this message_id; add it, or leave its replies out"
            yield _broken(_subtree(top, replies), Unfit("unknown_parent", "parent_id", problem))
    for row in [row for left in replies.values() for row in left]:
        problem = f"is {shown(row.value['parent_id'])}: these messages answer each other in a circle; mend one parent_id"
        yield _broken([row], Unfit("circle_of_parents", "parent_id", problem))


def _paths(root: _Node, book: Book) -> list[Draft]:
    """The conversations of a tree: the best-ranked answers all the way down, or every way that ends with an answer."""
    paths = [_best(root)] if book.tree_paths == "best" else list(_all(root))
    paths = [path for path in paths if path] or [[root.said]]
    return [chat(path, {}, book) for path in paths]


def _best(root: _Node) -> list[Said]:
    """From the root the reply of the best rank each time (the first of equals), up to the last answer."""
    path, node = [root.said], root
    while node.replies:
        node = min(node.replies, key=lambda reply: reply.rank)
        path.append(node.said)
    return _until_answer(path)


def _all(root: _Node) -> Iterator[list[Said]]:
    """Every way down that ends with an answer below which no other stands."""
    open_nodes = [(root, [root.said])]
    while open_nodes:
        node, path = open_nodes.pop()
        open_nodes += [(reply, [*path, reply.said]) for reply in reversed(node.replies)]
        if node.said.role == "assistant" and not _goes_on(node):
            yield path


def _goes_on(node: _Node) -> bool:
    """Whether another answer stands somewhere below."""
    return any(reply.said.role == "assistant" or reply.replies for reply in node.replies)


def _until_answer(path: list[Said]) -> list[Said]:
    last = max((number for number, one in enumerate(path, 1) if one.role == "assistant"), default=0)
    return path[:last]
