"""What a server answers where it cannot do what was asked: a status, and an error in OpenAI's shape."""

from typing import Any


class Fault(Exception):
    """A request that is refused or failed. `message` says what and the next step; nothing of the machine is in it."""

    def __init__(self, status: int, code: str, message: str, param: str | None = None, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.retry_after_s = status, code, message, param, retry_after_s

    def body(self, request_id: str) -> dict[str, Any]:
        """OpenAI's error object."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "code": self.code, "param": self.param, "request_id": request_id}}


def bad_request(param: str, problem: str, next_step: str) -> Fault:
    """A field that means nothing."""
    return Fault(400, "invalid_value", f"{param}: {problem}. Try: {next_step}", param)


def unknown_model(name: str) -> Fault:
    """A name that is served nowhere: never answered by the base."""
    return Fault(404, "model_not_found", f"model {name[:80]!r} is not served here. GET /v1/models lists what is", "model")


# Made anew each time: an exception that is raised again keeps all that every raise of it saw.
def internal() -> Fault:
    """Our own fault."""
    return Fault(500, "internal_error", "the request failed inside the server; its log has the cause beside this request_id")


def overloaded() -> Fault:
    """More requests than may wait."""
    return Fault(503, "overloaded", "too many requests are waiting. Try again later", None, 1)


def stopping() -> Fault:
    """The server takes no more requests."""
    return Fault(503, "shutting_down", "the server is about to end, or cannot answer any more", None, 5)


def too_late() -> Fault:
    """An answer took longer than it may."""
    return Fault(504, "deadline", "the answer was not ready in time. Try: a smaller max_tokens")
