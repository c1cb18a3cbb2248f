"""Counts what a server does, for Prometheus."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from gpt2.serve.served import Served

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)
"""Upper ends of the ranges in which times are counted."""


class Metrics:
    """Holds the figures that /metrics shows, one time series for each model."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, models: Iterable[Served]) -> None:
        self.registry = CollectorRegistry()
        of_model = {"labelnames": ("model",), "registry": self.registry}
        self.requests = Counter(
            "gpt2_requests", "Requests that were answered.", ("endpoint", "status"), registry=self.registry
        )
        self.prompt_tokens = Counter("gpt2_prompt_tokens", "Tokens of prompts.", **of_model)
        self.new_tokens = Counter("gpt2_new_tokens", "Tokens that were generated.", **of_model)
        self.first = Histogram(
            "gpt2_time_to_first_token_seconds", "Time from a request to its first token.", buckets=SECONDS, **of_model
        )
        self.whole = Histogram("gpt2_request_seconds", "Time of a completion.", buckets=SECONDS, **of_model)
        waiting = Gauge("gpt2_waiting_requests", "Choices that wait for a slot.", **of_model)
        used = Gauge("gpt2_used_slots", "Choices that are decoded.", **of_model)
        slots = Gauge("gpt2_slots", "Choices that can be decoded at the same time.", **of_model)
        for model in models:
            decoder = model.decoder
            waiting.labels(model.name).set_function(lambda decoder=decoder: decoder.n_waiting)
            used.labels(model.name).set_function(lambda decoder=decoder: decoder.n_decoded)
            slots.labels(model.name).set(decoder.slots)

    def text(self) -> bytes:
        """Return all figures in Prometheus's text format."""
        return generate_latest(self.registry)
