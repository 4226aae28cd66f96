"""Our speed with a filled KV cache over that of `llama-bench -d`, alternating between the two on this machine.

    python -m tests.bench.speed_at_depth [--depths 0,512,1024] [--repetitions 5] [--rounds 2]

SmolLM2 with caches of f16 and q8_0; the same file, threads and lengths go to both. The median of all repetitions
counts. Needs a quiet machine; a ratio of 0.95 to 1.05 is agreement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

from gguf_harness.engine.settings import KVTypes
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import Options, read_options
from gguf_harness.measure.core import Core
from gguf_harness.measure.speed.calls import Speed
from gguf_harness.pytest_plugin.progress import SilentProgress
from tests.bench.tools import build_tools
from tests.command_line import parse_command_line

CACHES = (KVTypes("f16", "f16"), KVTypes("q8_0", "q8_0"))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depths", default="0,512,1024")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench"))
    known = parser.parse_args()
    tool = build_tools(known.cache.absolute()) / "llama-bench"
    print("Tokens per second at depth; a ratio near 1 is agreement.")
    for pair in CACHES:
        ours: dict[str, list[float]] = {}
        theirs: dict[str, list[float]] = {}
        for _ in range(known.rounds):
            with tempfile.TemporaryDirectory() as folder:
                options = _options(folder, known)
                _add(theirs, _of_tool(tool, options, pair))
                _add(ours, _of_ours(options, pair))
        for test, values in theirs.items():
            mine, tools = statistics.median(ours[test]), statistics.median(values)
            print(f"  {test:<10} {pair!s:<12} ours {mine:8.1f}   llama-bench {tools:8.1f}   ratio {mine / tools:6.3f}")


def _options(folder: str, known: argparse.Namespace) -> Options:
    arguments = [f"--models={known.model}", f"--gguf-cache={folder}", f"--gguf-depths={known.depths}"]
    return read_options(parse_command_line(*arguments, f"--gguf-repetitions={known.repetitions}"))


def _of_ours(options: Options, pair: KVTypes) -> dict[str, list[float]]:
    core = Core(options, SilentProgress())
    try:
        model = core.subject(plan_ladder(options).models[0])
        result = Speed(core).at_depth(replace(model, settings=model.settings.with_kv(pair)))
    finally:
        core.close()
    return {name: [each.value for each in timing.ours] for name, timing in result.timings.items()}


def _of_tool(tool: Path, options: Options, pair: KVTypes) -> dict[str, list[float]]:
    """llama-bench's own samples, of the same tests."""
    core = Core(options, SilentProgress())
    try:
        (file,) = core.subject(plan_ladder(options).models[0]).files
    finally:
        core.close()
    depths = ",".join(map(str, options.depths))
    command: list[object] = [tool, "-m", file, "-p", options.pp, "-n", options.tg, "-r", options.repetitions]
    command += ["-d", depths, "-t", options.threads, "-ctk", pair.k, "-ctv", pair.v, "-fa", "1", "-o", "json"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)
    return {f"{'pp' if row['n_prompt'] else 'tg'}@{row['n_depth']}": row["samples_ts"] for row in rows}


def _add(to: dict[str, list[float]], more: dict[str, list[float]]) -> None:
    for test, values in more.items():
        to.setdefault(test, []).extend(values)


if __name__ == "__main__":
    main()
