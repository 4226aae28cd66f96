"""Throughput and load time with pytest-benchmark, which saves, compares and fails them by its own options.

Collected when this file is named, or with an option of pytest-benchmark that runs, saves or compares benchmarks.
test_speed.py measures the same for the report, and keeps it in the cache.
"""

from __future__ import annotations

from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.speed.benchmarks import Throughput


def test_prompt_processing(model: Subject, throughput: Throughput) -> None:
    """One round decodes a prompt of --gguf-pp tokens from an empty cache."""
    throughput.prompt(model)


def test_generation(model: Subject, throughput: Throughput) -> None:
    """One round decodes --gguf-tg tokens, one by one."""
    throughput.generation(model)


def test_load_time(model: Subject, throughput: Throughput) -> None:
    """One round loads the model and creates a context."""
    throughput.load(model)


def test_serving(model: Subject, throughput: Throughput) -> None:
    """One round answers all requests of eight clients."""
    throughput.served(model)
