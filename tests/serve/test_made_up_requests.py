"""Requests made up from the server's own OpenAPI (schemathesis): none is answered by a fault of the server, and each by what is written there."""

import os
from typing import Any

import hypothesis
import pytest
import requests
import schemathesis
from conftest_serve import Running
from hypothesis import HealthCheck

from luthier.serve.doors import Doors

PATHS = {
    # path                        requests
    "/v1/chat/completions":       120,
    "/v1/completions":            80,
    "/v1/embeddings":             40,
    "/v1/load_lora_adapter":      40,
    "/v1/unload_lora_adapter":    40,
    "/v1/models":                 10,
    "/v1/models/{name}":          40,
    "/health":                    5,
    "/ready":                     5,
    "/metrics":                   5,
}  # fmt: skip


def described(app: Doors) -> dict[str, Any]:
    document: dict[str, Any] = app.app.openapi()  # type: ignore[attr-defined]
    return document


def test_every_path_is_described_with_its_refusals_and_tried(running: Running) -> None:
    paths = described(running.app)["paths"]
    assert paths.keys() == PATHS.keys()
    assert all({"401", "403", "404", "500", "503"} <= one["responses"].keys() for path in paths.values() for one in path.values())


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_no_request_is_answered_by_a_fault_of_the_server(path: str, running: Running) -> None:
    try_made_up(path, running, PATHS[path])


@pytest.mark.nightly
@pytest.mark.parametrize("path", PATHS)
def test_no_request_of_5000_is_answered_by_a_fault_of_the_server(path: str, running: Running) -> None:
    try_made_up(path, running, int(5000 * float(os.environ.get("LUTHIER_TEST_LOAD", "1"))))


def try_made_up(path: str, running: Running, count: int) -> None:
    operation = next(found.ok() for found in schemathesis.openapi.from_dict(described(running.app)).get_all_operations() if found.ok().path == path)
    documented = {int(status) for status in operation.definition.raw["responses"]}
    statuses: set[int] = set()

    @hypothesis.settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @hypothesis.given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        if isinstance(case.body, dict) and case.body.get("model"):
            case.body = (
                case.body | {"model": "base", "max_tokens": 2, "max_completion_tokens": 2}
                if path != "/v1/completions"
                else case.body | {"model": "base", "max_tokens": 2}
            )
        answer: requests.Response = case.call(base_url=running.url, timeout=60)
        statuses.add(answer.status_code)
        assert answer.status_code in documented, (answer.status_code, answer.text, case.as_curl_command())
        assert answer.status_code < 500, (answer.text, case.as_curl_command())

    ask()
    assert statuses
