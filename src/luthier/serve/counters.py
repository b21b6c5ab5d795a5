"""What a server has done, for Prometheus. No label holds anything that a client wrote."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Counters:
    """The numbers behind /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("luthier_requests", "Requests", ["path", "method", "status"], registry=self.registry)
        self.seconds = Histogram("luthier_request_seconds", "Seconds to the last byte", ["path"], buckets=SECONDS, registry=self.registry)
        self.first = Histogram("luthier_first_token_seconds", "Seconds from the request to its first token", buckets=SECONDS, registry=self.registry)
        self.prompt_tokens = Counter("luthier_prompt_tokens", "Tokens of prompts", ["model"], registry=self.registry)
        self.reused_tokens = Counter("luthier_reused_prompt_tokens", "Tokens of prompts that were not run again", ["model"], registry=self.registry)
        self.answer_tokens = Counter("luthier_answer_tokens", "Tokens of answers", ["model"], registry=self.registry)
        self.in_flight = Gauge("luthier_requests_in_flight", "Requests that wait or are answered", registry=self.registry)
        self.running = Gauge("luthier_requests_running", "Requests that have a slot", registry=self.registry)
        self.loaded = Gauge("luthier_adapters_loaded", "Adapters in memory", registry=self.registry)

    def count(self, path: str, method: str, status: int, seconds: float) -> None:
        """One request that has ended."""
        self.requests.labels(path, method if method in ("GET", "POST", "HEAD", "OPTIONS", "DELETE", "PUT") else "other", str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All numbers in Prometheus' text format."""
        return generate_latest(self.registry)
