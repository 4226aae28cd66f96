"""An adapter's effect: a model without and with it, decoded side by side over the same windows. Runs in a worker."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import Lanes, count_lanes
from gguf_harness.engine.settings import SessionSettings, WindowOrder, scored_tokens
from gguf_harness.errors import NOT_FINITE_HINT, EngineError, FilesLost
from gguf_harness.measure.passes.logprobs import LogprobReader, LogprobWriter
from gguf_harness.measure.passes.tasks import CorpusText, PassRequest, check_room, cut_windows, require_windows
from gguf_harness.measure.prompt_inputs import check_context
from gguf_harness.metrics.adapter_effects import transferred
from gguf_harness.metrics.codec import RowCodec
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.store.arrays import Arrays, load_arrays

if TYPE_CHECKING:
    from gguf_harness.engine.context import LogitsBlock
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = ["BASE_CODES", "CODES", "EffectRequest", "has_effect_codes", "run_effect_pass", "run_merged_pass"]

BASE_CODES: Final = "base.u16"
CODES: Final = "adapted.u16"
_ROWS: Final = 16
"""Rows of the vocabulary that are compared at a time, in float64."""

Floats = NDArray[np.float64]
Stored = tuple[Path, Path]
"""A pass in the cache: its folder, with the distributions, and the file of its arrays."""


@dataclass(frozen=True, slots=True)
class EffectRequest:
    """What to decode.

    Attributes:
        model: name for messages.
        files: the GGUF file or its splits.
        base: how it is run without the adapters.
        adapted: how it is run with them.
        text: that is read.
        windows: how many of its windows at most.
        folder: where distributions are kept.
        limit_bytes: most bytes of these.
        order: which windows come first.
    """

    model: str
    files: tuple[Path, ...]
    base: SessionSettings
    adapted: SessionSettings
    text: CorpusText
    windows: int
    folder: Path
    limit_bytes: int
    order: WindowOrder = "sampled"

    def windows_of(self, model: Model) -> Arrays:
        """The windows to decode; see `cut_windows`. As many as the text has, where that is fewer."""
        tokens = model.tokenize(self.text.text)
        available = require_windows(self.text.name, len(tokens), self.base.n_ctx, None)
        request = PassRequest(
            self.model, self.files, self.base, self.text, min(self.windows, available), self.folder, order=self.order
        )
        return cut_windows(tokens, request)


def run_effect_pass(worker: WorkerContext, request: EffectRequest, keep: bool, reference: Stored | None) -> Arrays:
    """Decode windows without and with adapters, and compare both, token by token.

    Args:
        worker: that the task runs in.
        request: what to decode.
        keep: keep the distributions of both, for other bases to be compared with.
        reference: such a pass of the reference with the same adapters; None for none.

    Returns:
        Each [windows, scored tokens]: nll and nll_base (nats); top and top_base, most likely tokens; kld, KL(base ||
        adapted) in nats; with a reference also kld_reference, KL(reference with the adapters || this), and kld_effect,
        KL(this base changed as the reference is || this), see `transferred`. Besides tokens, [windows, n_ctx]; window,
        available and vocabulary, as in `run_reference_pass`; with distributions scale, total, scale_base, total_base.
    """
    model = worker.model(request.files, request.base.n_gpu_layers)
    check_context(model, request.model, request.base)
    cut = request.windows_of(model)
    windows = cut["tokens"].astype(np.int32)
    scored = scored_tokens(request.base.n_ctx)
    shape, vocabulary = (len(windows), scored), model.vocabulary.n_tokens
    if keep:
        check_room((2 * shape[0], scored, vocabulary), request.limit_bytes, "--gguf-logprobs-limit")
    with contextlib.ExitStack() as stack:
        writers = None
        if keep:
            writers = tuple(
                stack.enter_context(contextlib.closing(LogprobWriter(request.folder / name, (*shape, vocabulary))))
                for name in (BASE_CODES, CODES)
            )
        readers = None if reference is None else _readers(reference, shape, vocabulary, (BASE_CODES, CODES))
        kept = _Effects(shape, vocabulary, writers, readers)
        _decode(worker, model, (request.base, request.adapted), windows, kept)
    return kept.arrays | cut | {"vocabulary": np.array([vocabulary], dtype=np.int64)}


def run_merged_pass(worker: WorkerContext, request: EffectRequest, reference: Stored) -> Arrays:
    """Decode a model that adapters were merged into, and compare it with the reference that is run with them.

    Its files go afterwards: the worker is closed, for what is mapped keeps its place on the disk.

    Returns:
        nll and kld_reference, KL(reference with adapters || this), each [windows, scored tokens] in nats.
    """
    try:
        model = worker.model(request.files, request.base.n_gpu_layers)
        windows = load_arrays(reference[1])["tokens"].astype(np.int32)
        shape = (len(windows), scored_tokens(request.base.n_ctx))
        (reader,) = _readers(reference, shape, model.vocabulary.n_tokens, (CODES,))
        merged = _Merged(shape, model.vocabulary.n_tokens, reader)
        _decode(worker, model, (request.base,), windows, merged)
        return merged.arrays
    finally:
        worker.close()


def has_effect_codes(folder: Path, arrays: Arrays) -> bool:
    """Whether the distributions of a pass are (still) there, whole."""
    if "total" not in arrays:
        return False
    expected = 2 * arrays["scale"].size * int(arrays["vocabulary"].item())
    try:
        return all((folder / name).stat().st_size == expected for name in (BASE_CODES, CODES))
    except OSError:
        return False


class _Lane:
    """Contexts of one model that decode the same windows one after the other."""

    def __init__(self, model: Model, settings: tuple[SessionSettings, ...]) -> None:
        from gguf_harness.engine.context import Context

        with contextlib.ExitStack() as stack:
            self.contexts = [stack.enter_context(Context(model, each)) for each in settings]
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


class _Effects:
    """Takes what is kept of a base and the adapted model, block by block, from threads of several lanes."""

    def __init__(
        self,
        shape: tuple[int, int],
        vocabulary: int,
        writers: tuple[LogprobWriter, ...] | None,
        readers: tuple[LogprobReader, ...] | None,
    ) -> None:
        names = ["nll", "nll_base", "kld", *(("kld_reference", "kld_effect") if readers else ())]
        self.arrays: Arrays = {name: np.zeros(shape) for name in names}
        self.arrays |= {name: np.zeros(shape, dtype=np.int32) for name in ("top", "top_base")}
        if writers is not None:
            stored = ("scale_base", "total_base", "scale", "total")
            self.arrays |= {name: np.zeros(shape, dtype=np.float32) for name in stored}
        self._vocabulary, self._writers, self._readers = vocabulary, writers, readers

    def observe(self, blocks: tuple[LogitsBlock, ...]) -> None:
        base, adapted = blocks
        for start in range(0, len(base.targets), _ROWS):
            rows = slice(start, min(start + _ROWS, len(base.targets)))
            self._compare(base, adapted, rows)
        if self._writers is not None:
            for writer, block, ending in zip(self._writers, blocks, ("_base", ""), strict=True):
                self._write(writer, block, ending)

    def _compare(self, base: LogitsBlock, adapted: LogitsBlock, rows: slice) -> None:
        place = base.window, slice(base.row + rows.start, base.row + rows.stop)
        plain, own = log_softmax(base.logits[rows]), log_softmax(adapted.logits[rows])
        index = np.arange(len(plain)), base.targets[rows]
        values = {"nll_base": -plain[index], "nll": -own[index], "kld": _kl(plain, own)}
        if self._readers is not None:
            reference, target = (_decoded(reader, place, self._vocabulary) for reader in self._readers)
            values["kld_reference"] = _kl(target, own)
            values["kld_effect"] = _kl(transferred(plain, reference, target), own)
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise EngineError(
                    f"The logits of window {base.window} give a {name} that is not finite.", NOT_FINITE_HINT
                )
            self.arrays[name][place] = value
        self.arrays["top_base"][place] = base.logits[rows].argmax(axis=1)
        self.arrays["top"][place] = adapted.logits[rows].argmax(axis=1)

    def _write(self, writer: LogprobWriter, block: LogitsBlock, ending: str) -> None:
        codec, codes = RowCodec(self._vocabulary), writer.buffer(len(block.targets))
        for row in range(len(block.targets)):
            scale, _, total, _ = codec.encode(block.logits[row], codes[row])
            place = block.window, block.row + row
            self.arrays[f"scale{ending}"][place], self.arrays[f"total{ending}"][place] = scale, total
        writer.write(block.window, block.row, codes)


class _Merged:
    def __init__(self, shape: tuple[int, int], vocabulary: int, reader: LogprobReader) -> None:
        self.arrays: Arrays = {name: np.zeros(shape) for name in ("nll", "kld_reference")}
        self._vocabulary, self._reader = vocabulary, reader

    def observe(self, blocks: tuple[LogitsBlock, ...]) -> None:
        (block,) = blocks
        for start in range(0, len(block.targets), _ROWS):
            rows = slice(start, min(start + _ROWS, len(block.targets)))
            place = block.window, slice(block.row + rows.start, block.row + rows.stop)
            own = log_softmax(block.logits[rows])
            self.arrays["nll"][place] = -own[np.arange(len(own)), block.targets[rows]]
            self.arrays["kld_reference"][place] = _kl(_decoded(self._reader, place, self._vocabulary), own)


def _decode(
    worker: WorkerContext,
    model: Model,
    settings: tuple[SessionSettings, ...],
    windows: NDArray[np.int32],
    observer: _Effects | _Merged,
) -> None:
    count = count_lanes(settings[0])
    own = tuple(each.lane(count) for each in settings)
    size, total = own[0].n_seq, len(windows)

    def measure(lane: _Lane, group: range) -> int:
        scored = [context.score(windows, group.start, group.stop) for context in lane.contexts]
        for blocks in zip(*scored, strict=True):
            observer.observe(blocks)
        return group.stop

    worker.progress(0, total)
    with Lanes(count, lambda: _Lane(model, own)) as lanes:
        for done in lanes.map(measure, [range(first, min(first + size, total)) for first in range(0, total, size)]):
            worker.progress(done, total)


def _readers(
    stored: Stored, shape: tuple[int, int], vocabulary: int, names: tuple[str, ...]
) -> tuple[LogprobReader, ...]:
    folder, arrays_file = stored
    arrays = load_arrays(arrays_file)
    if arrays["nll"].shape != shape or int(arrays["vocabulary"].item()) != vocabulary:
        raise FilesLost(
            f"{folder} has distributions of {arrays['nll'].shape} tokens, expected {shape}.",
            "Measure the reference again with --gguf-fresh.",
        )
    endings = {BASE_CODES: "_base", CODES: ""}
    return tuple(
        LogprobReader(
            folder / name,
            arrays[f"scale{endings[name]}"].astype(np.float32),
            arrays[f"total{endings[name]}"].astype(np.float32),
            vocabulary,
        )
        for name in names
    )


def _decoded(reader: LogprobReader, place: tuple[int, slice], vocabulary: int) -> Floats:
    """[rows, vocabulary] log-probabilities."""
    window, rows = place
    codes, scales, _ = reader.rows(window, rows.start, rows.stop - rows.start)
    codec = RowCodec(vocabulary)
    return log_softmax(np.stack([codec.decode(*row).copy() for row in zip(codes, scales.tolist(), strict=True)]))


def _kl(target: Floats, own: Floats) -> Floats:
    """[rows] KL(target || own) of log-probabilities."""
    return np.asarray((np.exp(target) * (target - own)).sum(axis=-1))
