"""What a session decodes, measurement by measurement: counts, which no other process on the machine disturbs.

    python -m tests.bench.decode_accounting suites/attention suites/heads --models=smollm2-135m --gguf-quants=Q4_K_M

The arguments are pytest's. What workers would do is done in this process, with a cache that is removed afterwards, and
each call of llama_decode is counted: tokens, tokens whose logits are computed, and blocks times tokens, where a block
counts if llama.cpp computes its MLP. Shares are of the arithmetic of matrices on the way from tokens to logits, by the
sizes in the file.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest

from gguf_harness.engine.binding import Tensor
from gguf_harness.engine.context import Context
from gguf_harness.engine.tap_names import graph_nodes
from gguf_harness.engine.taps import Taps
from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_context import WorkerContext
from gguf_harness.errors import TapNotFound
from gguf_harness.gguf.header import read_header


@dataclass
class Count:
    """What one measurement of one model has decoded."""

    decodes: int = 0
    tokens: int = 0
    outputs: int = 0
    blocks: int = 0
    whole: int = 0
    arithmetic: float = 0.0
    seconds: float = 0.0


class _Here(WorkerContext):
    """A worker's context in this process: nobody asks for its progress."""

    def __init__(self) -> None:
        super().__init__(None)  # type: ignore[arg-type]

    def progress(self, done: int, total: int) -> None:
        """Nothing is shown."""


class Accounts:
    """Counts by task and model; replaces what decodes while it is entered."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], Count] = {}
        self._now = ("", "")
        self._workers: dict[Worker, _Here] = {}
        self._spared: dict[int, int] = {}
        self._adding = threading.Lock()
        self._sizes: dict[Path, tuple[int, float, float]] = {}

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """Count until the end of the context."""
        with pytest.MonkeyPatch.context() as patch:
            run, finish = Context._run, Taps.finish
            # Methods of a class, not of this object: what they belong to is passed to them.
            patch.setattr(Worker, "call", partialmethod(_pass_on, self._call))
            patch.setattr(Worker, "close", partialmethod(_pass_on, self._close))
            patch.setattr(Context, "_run", lambda context, *args: self._run(run, context, *args))
            patch.setattr(Taps, "finish", lambda taps: self._finish(finish, taps))
            yield

    def _call(self, worker: Worker, task: Callable[..., Any], _: object, *args: Any, **kwargs: Any) -> Any:
        before, self._now = self._now, (task.__name__, worker.label)
        start = time.perf_counter()
        try:
            return task(self._workers.setdefault(worker, _Here()), *args, **kwargs)
        finally:
            if self._now in self.counts:
                self.counts[self._now].seconds += time.perf_counter() - start
            self._now = before

    def _close(self, worker: Worker) -> None:
        if worker in self._workers:
            self._workers.pop(worker).close()

    def _finish(self, finish: Callable[[Taps], None], taps: Taps) -> None:
        skipped = {Tensor.from_address(address).name for address in getattr(taps, "_skipped", ())}
        mlps = {layer: _mlp(taps, layer) for layer in range(taps._n_layer)}
        self._spared[id(taps)] = sum(bool(names & skipped) for names in mlps.values())
        finish(taps)

    def _run(self, run: Callable[..., None], context: Context, *args: Any) -> None:
        _, tokens, _, _, outputs = args
        run(context, *args)
        # Contexts of several threads decode at the same time.
        with self._adding:
            blocks, per_block, per_output = self._size(context.model.files[0])
            computed = len(tokens) * (blocks - self._spared.pop(id(context.taps), 0))
            count = self.counts.setdefault(self._now, Count())
            count.decodes += 1
            count.tokens += len(tokens)
            count.outputs += int(outputs.sum())
            count.blocks += computed
            count.whole += len(tokens) * blocks
            count.arithmetic += computed * per_block + int(outputs.sum()) * per_output

    def _size(self, file: Path) -> tuple[int, float, float]:
        """(blocks, products per token and block, products per token with logits), from the shapes of the matrices."""
        if file not in self._sizes:
            header = read_header(file)
            blocks = header.metadata.integer(
                f"{header.metadata.name('general.architecture')}.block_count", most=1 << 16
            )
            sizes = {tensor.name: tensor.parameters for tensor in header.tensors if len(tensor.shape) > 1}
            inside = sum(size for name, size in sizes.items() if name.startswith("blk."))
            output = sizes.get("output.weight", sizes.get("token_embd.weight", 0))
            self._sizes[file] = (blocks or 1, inside / (blocks or 1), float(output))
        return self._sizes[file]


def _pass_on(worker: Worker, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(worker, *args, **kwargs)


def _mlp(taps: Taps, layer: int) -> set[bytes]:
    try:
        nodes = graph_nodes(f"blocks.{layer}.mlp_out", taps._architecture, taps._n_layer)
    except TapNotFound:
        return set()
    return {node.name.encode() for node in nodes}


def main() -> None:
    """Run the session and print."""
    accounts = Accounts()
    with tempfile.TemporaryDirectory() as folder, accounts.counting():
        places = [f"--gguf-cache={folder}/cache", f"--gguf-results={folder}/results"]
        status = pytest.main(["-p", "no:cacheprovider", "-q", *places, *sys.argv[1:]])
    total = sum(count.arithmetic for count in accounts.counts.values()) or 1.0
    print(f"\n{'measurement':24} {'model':32} {'decodes':>7} {'tokens':>9} {'logits':>9} {'blocks x tokens':>16}"
          f" {'of all':>7} {'share':>6} {'s':>7}")  # fmt: skip
    for (task, model), count in accounts.counts.items():
        print(
            f"{task:24} {model:32} {count.decodes:7} {count.tokens:9} {count.outputs:9} {count.blocks:16}"
            f" {count.blocks / count.whole:7.0%} {count.arithmetic / total:6.1%} {count.seconds:7.1f}"
        )
    sums = [sum(getattr(count, name) for count in accounts.counts.values()) for name in ("tokens", "outputs", "blocks")]
    print(f"{'all':65} {sums[0]:9} {sums[1]:9} {sums[2]:16}; {total / 1e12:.3f} T products")
    sys.exit(status)


if __name__ == "__main__":
    main()
