"""Speed and memory: computed in `gguf_harness.metrics.speed`."""

from __future__ import annotations

from typing import Final

from gguf_harness.metrics.registry.entry import Better, Column, GatedBy, Metric, Table

__all__ = ["METRICS"]

_BENCH: Final = "llama-bench (tools/llama-bench of llama.cpp)"
_RATIO: Final = GatedBy("quant", "test_speed_beside_the_reference")


def _timed(
    name: str,
    title: str,
    unit: str,
    meaning: str,
    definition: str,
    source: str,
    test: str,
    ratio: str,
    column: Column | None = None,
    tables: tuple[Table, ...] = ("html", "comparison"),
) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit=unit,
        better="lower" if unit == "s" else "higher",
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="timing",
        column=column,
        tables=frozenset(tables),
        gate=GatedBy("quant", test, any_model=True, relative=True),
        ratio=ratio,
        compared=False,
    )


def _ratio(
    name: str, title: str, meaning: str, definition: str, better: Better = "higher", *, in_report: bool = False
) -> Metric:
    return Metric(
        name=name,
        title=title,
        better=better,
        meaning=meaning,
        definition=definition,
        source="This harness: the repetitions of both models alternate, so that the machine's drift is in both.",
        estimated="timing",
        tables=frozenset({"html", "comparison"} if in_report else {"comparison"}),
        gate=_RATIO,
    )


def _memory(name: str, title: str, meaning: str, definition: str, column: Column | None = None) -> Metric:
    return Metric(
        name=name,
        title=title,
        unit="bytes",
        better="lower",
        meaning=meaning,
        definition=definition,
        source="The operating system, or the GPU's driver (NVML)." if column else "llama.cpp's log of its buffers.",
        estimated="memory",
        column=column,
        tables=frozenset({"html", "brief", "markdown", "comparison"} if column else ()),
        gate=GatedBy("quant", "test_memory", any_model=True, relative=True),
        compared=False,
    )


METRICS: Final = (
    _timed(
        "pp_tokens_per_s",
        "prompt t/s",
        "tokens/s",
        "Prompt processing speed, llama-bench's pp.",
        "Tokens of a prompt (--gguf-pp) / seconds that it takes to process, in an empty context.",
        f"{_BENCH}, test pp.",
        "test_prompt_processing",
        "pp_speed_ratio",
        Column(rank=6, error=False, decimals=0),
    ),
    _ratio(
        "pp_speed_ratio",
        "prompt speed ratio",
        "Prompt speed over the reference's, in turns.",
        "Prompt speed of the candidate / that of the reference, timed in turns.",
    ),
    _timed(
        "tg_tokens_per_s",
        "generation t/s",
        "tokens/s",
        "Generation speed, llama-bench's tg.",
        "Tokens generated one by one (--gguf-tg) / seconds, from an empty context.",
        f"{_BENCH}, test tg.",
        "test_generation",
        "tg_speed_ratio",
        Column("gen. t/s", rank=4, error=False, decimals=1),
        ("html", "brief", "markdown", "comparison"),
    ),
    _ratio(
        "tg_speed_ratio",
        "generation speed ratio",
        "Generation speed over the reference's.",
        "Generation speed of the candidate / that of the reference, timed in turns.",
        in_report=True,
    ),
    _timed(
        "load_s",
        "load",
        "s",
        "Time to load the model and create a context, file cache warm.",
        "Seconds from opening the file to a context that is ready, in a fresh process.",
        "This harness.",
        "test_load_time",
        "load_ratio",
    ),
    _ratio(
        "load_ratio",
        "load ratio",
        "Load time over the reference's, in turns.",
        "Load time of the candidate / that of the reference, timed in turns.",
        "lower",
    ),
    _memory(
        "peak_memory_bytes",
        "peak memory",
        "Peak memory of the worker process.",
        "Peak resident memory less what the process held before loading; with a GPU, peak memory of the process on it.",
        Column("memory", rank=8, error=False),
    ),
    _memory(
        "weights_bytes",
        "weights",
        "Model buffers, as llama.cpp reports them.",
        "Sum of the sizes of llama.cpp's model buffers.",
    ),
    _memory(
        "kv_cache_bytes",
        "KV cache",
        "KV cache buffers, as llama.cpp reports them.",
        "Sum of the sizes of llama.cpp's buffers of the KV cache.",
    ),
    _memory(
        "compute_bytes",
        "compute",
        "Compute buffers, as llama.cpp reports them.",
        "Sum of the sizes of llama.cpp's compute buffers.",
    ),
)
