"""Interventions on heads: the reference determines which heads, and all subjects are measured on the same tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gguf_harness.measure.heads import tasks
from gguf_harness.measure.heads.layout import read_layout
from gguf_harness.measure.heads.removing import RemovalLimits
from gguf_harness.measure.measurement import ARRAYS, Files, Job, Measurement
from gguf_harness.measure.passes.tasks import CorpusText
from gguf_harness.metrics.importance import NEGLIGIBLE_RISE, Head, screened_importance, window_rises
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.inputs.corpora import Corpus
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core

__all__ = ["HeadAblation"]

_WINDOW: Final = 96
"""Tokens of a window: 40 heads of the model tiny, four windows, zero and mean are 31 000 tokens."""

_SEQUENCES: Final = 4
"""Windows in a batch of one context: one takes 6 % more processor time, more than four save nothing."""

_MOST_LOGITS: Final = 1 << 28
"""Bytes of logits in memory, of all contexts together."""

_MOST_SEQUENCES: Final = 64
"""Most sequences of a batch: llama.cpp allows 256."""

_SCREENED_WINDOWS: Final = 2
"""Of a screen: fewer have no error."""

_LIMITS: Final = RemovalLimits(tries=3, choosing=_SCREENED_WINDOWS, most=1.0, enough=1.1 * NEGLIGIBLE_RISE)
"""Once the loss of every window has risen by more than NEGLIGIBLE_RISE, the number of heads that can go is known, and
so is its error.
"""


def _measurement(name: str, task: Callable[..., Arrays], version: int = 2) -> Measurement[Arrays]:
    return Measurement(f"heads/{name}", version, task, "sequences", ARRAYS)


_SCREEN: Final = _measurement("screen", tasks.run_head_screen, 3)
_SWEEP: Final = _measurement("sweep", tasks.run_head_sweep)
_VALUES: Final = _measurement("values", tasks.run_head_values)
_INTERCHANGE: Final = _measurement("interchange", tasks.run_head_interchange)
_REMOVAL: Final = _measurement("removal", tasks.run_head_removal, 5)
_PATH: Final = _measurement("path", tasks.run_head_path, 4)
_IN_PLACE: Final[Files[Arrays]] = Files("values", lambda *_: True)
"""The reference's values are read from the entry's own arrays."""


class HeadAblation:
    """Changes heads and measures the effect, once per subject.

    Values are per token, [..., windows, scored], on the same tokens for all subjects; `detail` says which.

    Args:
        core: runs measurements.
        corpus: windows of it are read.
        reference: chooses the heads of all subjects with its shape; None if there is none.
    """

    def __init__(self, core: Core, corpus: Corpus, reference: Subject | None = None) -> None:
        self._core = core
        self._corpus = corpus
        self._reference = reference

    @property
    def detail(self) -> str:
        """Number and length of the windows."""
        options = self._core.options
        return f"{options.head_windows} windows of {min(_WINDOW, options.ctx)} tokens"

    def sweep(self, model: Subject) -> Arrays:
        """Each head ablated alone; see `run_head_sweep`."""
        arrays = self._core.measure(self._sweep(model, self._heads(model)))
        base = arrays["nll"]
        self._core.notes.add_arrays(
            model.name,
            "head_importance",
            "Effect of ablating each head, by window, in nats: rise of the loss, and KL from the unchanged model.",
            {
                "heads": arrays["heads"],
                "zero": window_rises(arrays["nll_zero"], base),
                "zero_kl": window_rises(arrays["kld_zero"], 0),
                "mean": window_rises(arrays["nll_mean"], base),
                "mean_kl": window_rises(arrays["kld_mean"], 0),
            },
        )
        return arrays

    def screen(self, model: Subject) -> Arrays:
        """Every head ablated alone on a few windows; see `run_head_screen`."""
        return self._core.measure(self._screen(model))

    def interchange(self, candidate: Subject, reference: Subject) -> Arrays:
        """The reference's heads in a candidate; see `run_head_interchange`."""
        heads = self._heads(candidate)
        theirs = self._job(_VALUES, f"heads of {reference.name}", reference, lambda request: (request,))
        # They are large, and only needed if something is to be measured.
        theirs = replace(theirs, files=_IN_PLACE)
        base = self._core.entry(theirs)
        job = self._job(
            _INTERCHANGE,
            f"interchanging heads of {candidate.name}",
            candidate,
            lambda request: (request, base.arrays_file, heads),
            heads=heads,
            reference=base.digest,
        )
        return self._core.measure(replace(job, reads=(theirs,)))

    def removal(self, model: Subject, along: Subject | None = None) -> Arrays:
        """Heads removed one by one; see `run_head_removal`.

        Args:
            model: the subject to remove heads from.
            along: the subject whose order to follow; None to search for one.
        """
        label = f"removing heads of {model.name}"
        if along is None:
            job = self._removal(model, label)
        else:
            theirs = self.removal(along)
            path = [(int(layer), int(head)) for name in ("heads", "rest") for layer, head in theirs[name]]
            job = self._job(
                _PATH, label, model, lambda request: (request, path, _LIMITS), path=path, limits=asdict(_LIMITS)
            )
        arrays = self._core.measure(job)
        self._core.notes.add_arrays(
            model.name,
            "head_removal",
            "The loss by window, in nats, with more and more heads removed.",
            {
                "heads": arrays["heads"],
                "nll": window_rises(arrays["nll"], 0),
                "all": np.array(len(self._all(model))),
            },
        )
        return arrays

    def _screen(self, model: Subject) -> Job[Arrays]:
        count = min(_SCREENED_WINDOWS, self._core.options.head_windows)
        label = f"screen of heads of {model.name}"
        return self._job(_SCREEN, label, model, lambda request: (request, count), screened=count)

    def _sweep(self, model: Subject, heads: list[Head]) -> Job[Arrays]:
        screened = self._is_screened(model)

        def arguments(request: tasks.HeadRequest) -> tuple[Any, ...]:
            return request, heads, self.screen(model) if screened else None

        return self._job(_SWEEP, f"ablating heads of {model.name}", model, arguments, heads=heads)

    def _removal(self, model: Subject, label: str) -> Job[Arrays]:
        """Of all heads, by what each changes alone."""
        alone = self._screen(model) if self._is_limited(model) else self._sweep(model, self._all(model))

        def arguments(request: tasks.HeadRequest) -> tuple[Any, ...]:
            arrays = self._core.measure(alone)
            changes = arrays["kld_zero"].astype(float).mean(axis=(1, 2)).tolist()
            heads = [(layer, head) for layer, head in arrays["heads"].tolist()]
            return request, dict(zip(heads, changes, strict=True)), _LIMITS

        return self._job(
            _REMOVAL, label, model, arguments, alone=self._core.entry(alone).digest, limits=asdict(_LIMITS)
        )

    def _job(
        self,
        measurement: Measurement[Arrays],
        label: str,
        model: Subject,
        arguments: Callable[[tasks.HeadRequest], tuple[Any, ...]],
        **more: Any,
    ) -> Job[Arrays]:
        windows = self._core.options.head_windows
        settings = _settings(model)
        request = tasks.HeadRequest(
            model.name, model.files, settings, CorpusText(self._corpus.name, self._corpus.text), windows
        )
        key = self._core.key(replace(model, settings=settings)) | {"corpus": self._corpus.sha256, "windows": windows}
        return Job(measurement, label, key | more, lambda _: arguments(request), subjects=(model,))

    def _heads(self, model: Subject) -> list[Head]:
        """The same heads for all subjects with the reference's shape, so that they can be compared."""
        every, chooser = self._all(model), self._chooser(model)
        heads = self._chosen(chooser)
        if len(heads) < len(every):
            self._core.notes.warn(
                f"{model.name}: {len(heads)} of {len(every)} heads were ablated, the first ones in a screen of "
                f"{chooser.name}; --gguf-head-limit=all takes all."
            )
        return heads

    def _chooser(self, model: Subject) -> Subject:
        """Whose screen chooses the heads of a model."""
        reference = self._reference
        return model if reference is None or self._all(reference) != self._all(model) else reference

    def _is_screened(self, model: Subject) -> bool:
        """Whether a model's own screen chooses its heads."""
        return self._is_limited(model) and self._chooser(model).key() == model.key()

    def _is_limited(self, model: Subject) -> bool:
        """Whether only some of its heads are ablated on all windows."""
        limit = self._core.options.head_limit
        return limit is not None and len(self._all(model)) > limit

    def _all(self, model: Subject) -> list[Head]:
        """(layer, head) of every head of a model."""
        return self._core.once(("heads", model.sha256), lambda: read_layout(model.files[0]).all)

    def _chosen(self, model: Subject) -> list[Head]:
        """The heads to ablate one by one: all, or if there are too many, the first ones in the screen."""
        heads, limit = self._all(model), self._core.options.head_limit
        if limit is None or len(heads) <= limit:
            return heads
        effects = [effect.value for effect in screened_importance(self.screen(model))]
        best = sorted(zip(effects, heads, strict=True), reverse=True)[:limit]
        return sorted(head for _, head in best)


def _settings(model: Subject) -> SessionSettings:
    """Short windows, and batches decoded at once: rows of z are identified by their position."""
    given = model.settings
    n_ctx = min(_WINDOW, given.n_ctx)
    room = max(1, _MOST_LOGITS // (4 * n_ctx * (model.info.n_vocab or 1)))
    per_lane = min(_SEQUENCES, max(1, room // given.threads), max(1, _MOST_SEQUENCES // given.threads))
    n_batch = n_ctx * min(per_lane * given.threads, room, _MOST_SEQUENCES)
    return replace(given, n_ctx=n_ctx, n_batch=n_batch, n_ubatch=n_batch)
