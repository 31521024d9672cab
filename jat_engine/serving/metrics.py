"""Metrics of a policy server, in the text format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from ..engine.kv_cache import CacheStats
from .errors import KINDS
from .requests import Reply

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4

_SECONDS = tuple(base * 10.0**power for power in range(-5, 1) for base in (1, 2, 5))
_BATCHES = tuple(float(2**power) for power in range(11))


class Metrics:
    """Counters, gauges and histograms, in a registry of their own: two servers in a process do not share them."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.connections = Gauge("jat_connections", "Open connections.", registry=registry)
        self.sessions = Gauge("jat_sessions", "Open sessions.", registry=registry)
        self.max_sessions = Gauge("jat_sessions_max", "Most sessions that can be open.", registry=registry)
        self.queue = Gauge("jat_queue_length", "Requests that wait for a step.", registry=registry)
        self.pages = Gauge("jat_cache_pages", "Pages of the KV cache.", ["state"], registry=registry)
        self.requests = Counter("jat_requests", "Requests that were answered.", ["dialect"], registry=registry)
        self.episodes = Counter("jat_episodes", "Episodes that have begun.", registry=registry)
        self.repeats = Counter("jat_repeated_requests", "Replies that were given again.", registry=registry)
        self.errors = Counter("jat_errors", "Requests that were refused or failed.", ["kind"], registry=registry)
        self.refusals = Counter("jat_refused_connections", "Connections that were refused.", registry=registry)
        self.batch = Histogram("jat_batch_size", "Sessions in a step.", buckets=_BATCHES, registry=registry)
        self.step = Histogram("jat_step_seconds", "Seconds of a step.", buckets=_SECONDS, registry=registry)
        self.wait = Histogram("jat_queue_seconds", "Seconds a request waits.", buckets=_SECONDS, registry=registry)
        self.snapshots = Histogram(
            "jat_snapshot_seconds", "Seconds in which a snapshot is stored.", buckets=_SECONDS, registry=registry
        )
        self.snapshot_bytes = Counter("jat_snapshot_bytes", "Bytes of stored snapshots.", registry=registry)
        self.resumed = Counter("jat_resumed_sessions", "Sessions gone on with.", ["status"], registry=registry)
        for status in ("resumed", "restored"):
            self.resumed.labels(status)
        for kind in KINDS:
            self.errors.labels(kind)

    def count_step(self, batch: int, seconds: float) -> None:
        """Count a step of `batch` sessions."""
        self.batch.observe(batch)
        self.step.observe(seconds)

    def count_reply(self, reply: Reply) -> None:
        """Count a reply to a request for a step."""
        if reply.is_repeat:
            self.repeats.inc()
        else:
            self.wait.observe(reply.queue_s)

    def count_snapshot(self, num_bytes: int, seconds: float) -> None:
        """Count a snapshot that was stored."""
        self.snapshots.observe(seconds)
        self.snapshot_bytes.inc(num_bytes)

    def set_cache(self, stats: CacheStats) -> None:
        """Set the gauges of the KV cache."""
        for state in ("total", "used", "free", "reserved"):
            self.pages.labels(state).set(getattr(stats, state))

    def to_text(self) -> bytes:
        """Return all metrics as Prometheus reads them."""
        text: bytes = generate_latest(self.registry)
        return text
