"""Metrics of served models, as clients see them."""

from __future__ import annotations

from typing import Final

from gguf_harness.metrics.registry.entry import GatedBy, Metric

__all__ = ["METRICS"]


def _served(
    name: str, title: str, meaning: str, definition: str, test: str = "test_serving", unit: str = "s"
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better="lower" if unit == "s" else "higher",
        meaning=meaning,
        definition=definition,
        source="The usual names of benchmarks of servers: TTFT (time to first token), ITL (inter-token latency).",
        estimated="requests",
        gate=GatedBy("quant", test, any_model=True),
        compared=False,
    )


METRICS: Final = (
    _served(
        "served_single_tokens_per_s",
        "single stream t/s",
        "Generation speed for a server's only client.",
        "(tokens - 1) / seconds between the first and the last token of a request that is alone.",
        "test_a_single_stream_agrees_with_generation",
        "tokens/s",
    ),
    _served(
        "served_tokens_per_s",
        "served t/s",
        "Tokens per second of all clients together.",
        "Tokens of all answers / seconds from the first request to the last token.",
        unit="tokens/s",
    ),
    _served(
        "served_ttft_p50_s",
        "TTFT p50",
        "Median time to a client's first token, queue included.",
        "50th percentile of (first token - request sent) over requests.",
    ),
    _served(
        "served_ttft_p99_s",
        "TTFT p99",
        "99th percentile of the time to a client's first token.",
        "99th percentile of (first token - request sent) over requests.",
    ),
    _served(
        "served_itl_p50_s",
        "ITL p50",
        "Median time between two tokens that a client gets.",
        "50th percentile of the time between consecutive tokens of a request.",
    ),
    _served(
        "served_itl_p99_s",
        "ITL p99",
        "99th percentile of the time between a client's tokens.",
        "99th percentile of the time between consecutive tokens of a request.",
    ),
)
