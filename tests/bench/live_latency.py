"""How long a prompt takes from the question to the data of the views, and how fast a loaded model writes.

    python -m tests.bench.live_latency [--model smollm2-135m] [--tokens 64] [--threads N] [--rounds 7]

The prompt is read with everything that is shown of it: attention of all heads, the stream of all layers, logits; then
the views' data is made. Beside it, in turns and in the same worker, llama.cpp decodes the same tokens with the logits
of each, and nothing else. Steps are compared with `Context.generate` on the same prompt. The first round warms up;
medians count, and those of the ratio of each round. The aim is of two quiet cores.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from typing import Final

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.options import default_threads
from gguf_harness.inputs.sources import expand
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.views.reading_data import attention_view, next_tokens_view, stream_view
from tests.bench.plain_decode import time_decode, time_generation

AIM_S: Final = 1.0
SIDE: Final = 64
WRITTEN: Final = 32
_WARM_UP: Final = 1

Timings = dict[str, list[float]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=7)
    known = parser.parse_args()
    (source,) = expand(known.model)
    print(f"{known.model}, {known.tokens} tokens, {known.threads} threads, load average {_load()}", flush=True)
    with LiveModel(load_info(source), SessionSettings(threads=known.threads), gpu=-1) as live:
        start = time.perf_counter()
        heads = len(live.facts.all_heads)
        print(f"  load, and find out what can be read   {time.perf_counter() - start:7.3f} s ({heads} heads)")
        text = live.tokenize(load_corpus("pydoc").text[: 40 * known.tokens])[0].tolist()[: known.tokens]
        _print_reading(_time_reading(live, text, known.rounds))
        _print_writing(_time_writing(live, text, known.rounds))
    print(f"load average {_load()}")


def _time_reading(live: LiveModel, text: list[int], rounds: int) -> Timings:
    """Seconds of each part, by its name."""
    seconds: Timings = defaultdict(list)
    for _ in range(_WARM_UP + rounds):
        context, decode = live.worker.call(time_decode, None, live.info.files, live.settings, text)
        seconds["context"].append(context)
        seconds["decode"].append(decode)
        times = [time.perf_counter()]
        reading = live.read(text)
        times.append(time.perf_counter())
        attention_view([reading], SIDE)
        times.append(time.perf_counter())
        next_tokens_view([reading], live)
        times.append(time.perf_counter())
        stream_view([reading])
        times.append(time.perf_counter())
        for name, first, last in zip(("read", "attention", "next tokens", "stream"), times, times[1:], strict=False):
            seconds[name].append(last - first)
        seconds["all"].append(times[-1] - times[0])
    return {name: values[_WARM_UP:] for name, values in seconds.items()}


def _print_reading(seconds: Timings) -> None:
    whole = statistics.median(seconds["all"])
    ratio = statistics.median(a / b for a, b in zip(seconds["all"], seconds["decode"], strict=True))
    verdict = "reached" if whole < AIM_S else "MISSED"
    print(f"  decode with logits, nothing else      {_median(seconds['decode'])}")
    print(f"  a context for it                      {_median(seconds['context'])}")
    print(f"  read                                  {_median(seconds['read'])}")
    for name in ("attention", "next tokens", "stream"):
        print(f"  {'data of the view of ' + name:<37} {_median(seconds[name])}")
    print(f"  all, median of {len(seconds['all'])}                      {whole:7.3f} s   aim < {AIM_S:g} s {verdict}")
    print(f"  over the decode, median ratio         {ratio:7.2f}", flush=True)


def _time_writing(live: LiveModel, text: list[int], rounds: int) -> Timings:
    """Seconds per token after the first, by how it was written."""
    seconds: Timings = defaultdict(list)
    for _ in range(_WARM_UP + rounds):
        # Ends early where the model does, in all three.
        _, plain = live.worker.call(time_generation, None, live.info.files, live.settings, text, WRITTEN)
        seconds["plain"].append(plain)
        for name, attention in (("steps", False), ("steps with attention", True)):
            times = [time.perf_counter() for _ in live.steps(text, WRITTEN, attention=attention)]
            seconds[name].append((times[-1] - times[0]) / max(len(times) - 1, 1))
    return {name: values[_WARM_UP:] for name, values in seconds.items()}


def _print_writing(seconds: Timings) -> None:
    for name, values in seconds.items():
        speed = 1 / statistics.median(values)
        ratio = statistics.median(b / a for a, b in zip(values, seconds["plain"], strict=True))
        print(f"  {name:<37} {speed:7.1f} tokens/s, {ratio:.2f} of plain", flush=True)


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):7.3f} s"


def _load() -> str:
    return " ".join(f"{load:.2f}" for load in os.getloadavg())


if __name__ == "__main__":
    main()
