"""A client of OpenAI-compatible endpoints: questions out, answers and token counts in, at the pace that the server allows.

The standard library is enough for one kind of request, and shows each step: no redirect is followed, and the key goes to one host only.
"""

import email.utils
import http.client
import json
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from luthier.errors import CallError, LuthierError
from luthier.version import VERSION

PATH = "/chat/completions"
LARGEST_ANSWER_BYTES = 16 * 1024 * 1024
TRIES = 6
FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0
# A server that asks for a longer pause than this is met again by the next call, not waited for.
LONGEST_PAUSE_S = 900.0
LISTEN_S = 0.2
LOOPBACK = {"localhost", "127.0.0.1", "::1"}
RETRIED = {408, 409, 425, 429}
# The server understood the call and does not want this one question: the next may be fine.
REFUSED = {400, 413, 422}
STEPS = {
    401: "the key is missing, wrong or expired: --key-env NAME names the environment variable that holds it",
    402: "the account has no credit left; the same command goes on once it has",
    403: "the key may not use this model or this address: check both",
    404: "check --endpoint (it ends in /v1, as a rule) and --model against what the server offers (GET /v1/models)",
    405: "check --endpoint: the address is not that of an OpenAI-compatible API",
}


class Refused(LuthierError):
    """The server refused one question (400, 413, 422)."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request. A server that knows idempotency keys answers the same `id` once, however often it is sent."""

    id: str
    messages: list[dict[str, str]]
    settings: dict[str, Any]  # model, max_tokens, temperature ... as the API names them


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer. `cut` where it ended at max_tokens; the token counts are the server's, None where it gives none."""

    text: str
    cut: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    tries: int


class Pace:
    """When the next request may go: so many a minute, and not before a pause that the server asked for has ended."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._gap_s = 60 / requests_per_minute if requests_per_minute else 0.0
        self._next = time.monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Take the next place; how many seconds it is away."""
        with self._lock:
            now = time.monotonic()
            place = max(now, self._next)
            self._next = place + self._gap_s
            return place - now

    def pause(self, seconds: float) -> None:
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect could carry the key to another host."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


class _TryAgain(Exception):
    """A try that failed in a way that may pass: what happened, and the seconds that the server asked to wait."""

    def __init__(self, what: str, wait_s: float | None = None) -> None:
        super().__init__(what)
        self.what, self.wait_s = what, wait_s


class Endpoint:
    """One address and one key. `ask` may be called by many threads at once."""

    def __init__(self, address: str, key: str = "", *, timeout_s: float = 120.0, requests_per_minute: float | None = None) -> None:
        self.url = complete(address)
        self.host = urllib.parse.urlsplit(self.url).netloc
        self._key, self._timeout_s = key, timeout_s
        self._pace = Pace(requests_per_minute)
        self._stopped = threading.Event()
        # A proxy of the environment is used, but not for this machine itself.
        local = urllib.parse.urlsplit(self.url).hostname in LOOPBACK
        self._opener = urllib.request.build_opener(_NoRedirects, *([urllib.request.ProxyHandler({})] if local else []))

    @property
    def shows_key(self) -> bool:
        """Whether the key would be readable on the way: plain http to another machine."""
        parts = urllib.parse.urlsplit(self.url)
        return bool(self._key) and parts.scheme == "http" and parts.hostname not in LOOPBACK

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Try nothing again: what is on its way may still arrive."""
        self._stopped.set()

    def ask(self, question: Question) -> Reply:
        """Send one question and wait for its answer. 429, 5xx, timeouts and broken connections are tried again, with growing pauses.

        Raises Refused where the server does not want this question, and LuthierError for what no other question would mend.
        """
        for number in range(1, TRIES + 1):
            self._wait(self._pace.take())
            try:
                return self._once(question, number)
            except _TryAgain as failure:
                last = failure.what
                # Half of the wait is drawn, so that many callers do not come back at one moment.
                growing = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (number - 1)) * random.uniform(0.5, 1.0)
                self._check_pause(failure)
                if failure.wait_s is not None:
                    self._pace.pause(failure.wait_s)
                elif number < TRIES:
                    self._wait(growing)
        raise LuthierError(
            f"{last} ({TRIES} tries)",
            where=self.url,
            next_step="see that the server is up; the same command goes on from here, nothing that was answered is lost",
        )

    def stream(self, question: Question) -> Iterator[str]:
        """The answer to one question, piece by piece as it comes. It is asked once: a person who waits can ask again.

        Raises Refused and LuthierError as `ask` does, and LuthierError where the answer breaks off.
        """
        try:
            with self._opened(question, stream=True) as response:
                for line in response:
                    piece, ended = _piece(line)
                    if ended:
                        return
                    if piece:
                        yield piece
        except _TryAgain as failure:
            raise LuthierError(failure.what, where=self.url, next_step="see that the server is up, and ask again") from failure
        except (http.client.HTTPException, OSError) as error:
            problem = f"the answer broke off ({type(error).__name__})"
            raise LuthierError(problem, where=self.url, next_step="see that the server is up, and ask again") from error
        raise LuthierError("the answer broke off before its end", where=self.url, next_step="see the server's log, and ask again")

    def models(self) -> dict[str, str | None]:
        """The names that the server offers (GET /v1/models), each with the model that it stands on, where that is said.

        Raises LuthierError where it does not list them.
        """
        address = self.url.removesuffix(PATH) + "/models"
        request = urllib.request.Request(address, headers=self._headers("models"))
        try:
            with self._opener.open(request, timeout=self._timeout_s) as response:
                return {str(one["id"]): one.get("parent") for one in json.loads(response.read(LARGEST_ANSWER_BYTES))["data"]}
        except urllib.error.HTTPError as error:
            with error:
                failure = self._failure(error)
            raise failure if isinstance(failure, LuthierError) else self._nothing_there(str(failure)) from error
        except (http.client.HTTPException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = getattr(error, "reason", error)
            raise self._nothing_there(f"does not list its models ({getattr(reason, 'strerror', None) or reason})") from error

    def _nothing_there(self, problem: str) -> LuthierError:
        return LuthierError(
            problem, where=self.url, next_step="see that the server is up and the address is right; --model NAME asks without its list"
        )

    def _check_pause(self, failure: _TryAgain) -> None:
        if failure.wait_s is not None and failure.wait_s > LONGEST_PAUSE_S:
            minutes = failure.wait_s / 60
            raise LuthierError(f"{failure.what}, for {minutes:.0f} minutes", where=self.url, next_step="the same command later: it goes on from here")

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(seconds) if seconds > 0 else self._stopped.is_set():
            raise LuthierError("stopped before it was sent", where=self.url, next_step="the same command goes on from here")

    def _once(self, question: Question, number: int) -> Reply:
        try:
            with self._opened(question, stream=False) as response:
                return _reply(response.read(LARGEST_ANSWER_BYTES + 1), number)
        except TimeoutError as error:
            raise _TryAgain(f"no answer within {self._timeout_s:.0f} seconds") from error
        except (http.client.HTTPException, OSError) as error:
            raise _TryAgain(f"the connection broke ({type(error).__name__})") from error

    def _opened(self, question: Question, stream: bool) -> Any:
        """The response to a question, its headers read."""
        body = json.dumps({**question.settings, "messages": question.messages, "stream": stream}).encode()
        request = urllib.request.Request(self.url, data=body, headers=self._headers(question.id), method="POST")
        try:
            return self._opener.open(request, timeout=self._timeout_s)
        except urllib.error.HTTPError as error:
            with error:
                raise self._failure(error) from error
        except TimeoutError as error:
            raise _TryAgain(f"no answer within {self._timeout_s:.0f} seconds") from error
        except urllib.error.URLError as error:
            raise _TryAgain(f"cannot be reached ({getattr(error.reason, 'strerror', None) or error.reason})") from error
        except (http.client.HTTPException, OSError) as error:
            raise _TryAgain(f"the connection broke ({type(error).__name__})") from error

    def _headers(self, identity: str) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": f"luthier/{VERSION}", "Idempotency-Key": identity}
        return headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _failure(self, error: urllib.error.HTTPError) -> Exception:
        said = self._without_key(_message(error.read(10_000)))
        problem = f"answered {error.code} {http.client.responses.get(error.code, '')}".rstrip() + (f": {said}" if said else "")
        if error.code == 429 and "insufficient_quota" in said:
            return LuthierError(problem, where=self.url, next_step=STEPS[402])
        if error.code in RETRIED or error.code >= 500:
            return _TryAgain(problem, retry_after_s(error.headers.get("Retry-After")))
        if error.code in REFUSED:
            return Refused(problem, where=self.url, next_step="see what the server says; --max-tokens and --temperature are sent as they are given")
        if 300 <= error.code < 400:
            problem = f"answered {error.code}: moved to {error.headers.get('Location', 'another address')}, which is not followed"
            return LuthierError(problem, where=self.url, next_step="name the new address with --endpoint, if you trust it with your key")
        return LuthierError(problem, where=self.url, next_step=STEPS.get(error.code, "see what the server says, and check --endpoint and --model"))

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "(key)") if self._key else text


class Callers:
    """Threads that ask an endpoint, `concurrency` at once, until `with` ends. Questions and replies pass through the one thread that owns this."""

    def __init__(self, endpoint: Endpoint, concurrency: int) -> None:
        self.endpoint, self.concurrency = endpoint, concurrency
        self.in_flight = 0
        self._questions: queue.Queue[Question | None] = queue.Queue()
        self._replies: queue.Queue[tuple[Question, Reply | LuthierError]] = queue.Queue()
        for _ in range(concurrency):
            # Daemons: a second Ctrl-C need not wait for a server.
            threading.Thread(target=self._work, name="caller", daemon=True).start()

    def __enter__(self) -> "Callers":
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(queue.Empty):
            while True:
                self._questions.get_nowait()  # nobody waits for its answer any more
        for _thread in range(self.concurrency):
            self._questions.put(None)

    def send(self, question: Question) -> None:
        self.in_flight += 1
        self._questions.put(question)

    def next_reply(self) -> tuple[Question, Reply | LuthierError] | None:
        """The next answer or failure, in the order they come in; None where none came for a moment."""
        try:
            question, reply = self._replies.get(timeout=LISTEN_S)
        except queue.Empty:
            return None
        self.in_flight -= 1
        return question, reply

    def _work(self) -> None:
        while (question := self._questions.get()) is not None:
            try:
                self._replies.put((question, self.endpoint.ask(question)))
            except LuthierError as error:
                self._replies.put((question, error))
            except Exception as error:  # a thread that dies silently would leave its owner waiting for ever
                problem = f"a fault of ours: {type(error).__name__}: {error}"
                self._replies.put((question, LuthierError(problem, where=self.endpoint.url, next_step="report it with the command")))


def complete(address: str) -> str:
    """The full URL of the chat API behind an address that a user gave: with or without /v1, with or without the last part.

    Raises CallError for what is no http address, and for one with a password in it.
    """
    parts = urllib.parse.urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CallError("is no http:// or https:// address", where=f"--endpoint {address}", next_step="such as https://api.example.com/v1")
    if parts.username or parts.password:
        raise CallError(
            "has a name or password in it", where=f"--endpoint {parts.hostname}", next_step="leave it out; --key-env NAME names where the key is"
        )
    path = parts.path.rstrip("/")
    if not path.endswith(PATH):
        path = (path or "/v1") + PATH
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


def retry_after_s(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None where it says nothing readable."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _reply(body: bytes, tries: int) -> Reply:
    if len(body) > LARGEST_ANSWER_BYTES:
        raise _TryAgain(f"the answer is larger than {LARGEST_ANSWER_BYTES // 2**20} MiB")
    try:
        answer = json.loads(body)
        choice = answer["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise _TryAgain(f"the answer is no chat completion ({body[:80].decode('utf-8', 'replace')!r})") from error
    usage = answer.get("usage") or {}
    return Reply(text, choice.get("finish_reason") == "length", _count(usage, "prompt_tokens"), _count(usage, "completion_tokens"), tries)


def _piece(line: bytes) -> tuple[str, bool]:
    """What a line of a stream says, and whether it ends the answer. Raises _TryAgain for a fault that the server tells of."""
    text = line.decode("utf-8", "replace").strip()
    if not text.startswith("data:"):
        return "", False
    text = text.removeprefix("data:").strip()
    if text == "[DONE]":
        return "", True
    try:
        value = json.loads(text)
        if "error" in value:
            raise _TryAgain(f"broke off: {_message(text.encode())}")
        choices = value["choices"]
        return (choices[0]["delta"].get("content") or "") if choices else "", False
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise _TryAgain(f"the answer is no chat completion ({text[:80]!r})") from error


def _count(usage: object, name: str) -> int | None:
    value = usage.get(name) if isinstance(usage, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _message(body: bytes) -> str:
    """What a server says of an error, in one line: OpenAI's form, or the text itself."""
    text = body.decode("utf-8", "replace")
    try:
        error = json.loads(text)["error"]
        text = f"{error['message']} ({error['code']})" if isinstance(error, dict) and error.get("code") else str(dict(error)["message"])
    except (ValueError, KeyError, TypeError):
        pass
    return " ".join(text.split())[:300]
