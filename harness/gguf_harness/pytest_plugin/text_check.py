"""Check that the text has enough windows, before anything is measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from gguf_harness.engine.worker import Worker
from gguf_harness.engine.worker_tasks import count_tokens
from gguf_harness.errors import CorpusError, HarnessError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.models import load_info
from gguf_harness.measure.passes.tasks import MIN_WINDOWS, require_windows

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedModel
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.sources import ModelSource

__all__ = ["check_windows"]

_BYTES_OF_A_TOKEN: Final = 6
"""More bytes than a token of prose has on average in any vocabulary: texts that are long enough by this measure are not
tokenized.
"""


def check_windows(options: Options, ladder: Ladder) -> None:
    """Refuse a text that is too short for --gguf-ctx and --gguf-chunks.

    Counting takes a process that reads the reference's vocabulary, about a second. Other problems of models are
    reported by their tests.

    Raises:
        CorpusError: the text is missing or too short.
    """
    source = _source(ladder.reference.model if ladder.reference else None)
    if source is None:
        return
    try:
        held_out = load_info(source).held_out_topics
    except HarnessError:
        return
    corpus = load_corpus(options.corpus, held_out_topics=held_out)
    if options.ctx * (options.chunks or MIN_WINDOWS) * _BYTES_OF_A_TOKEN <= len(corpus.text):
        return
    with Worker(source.name, options.cache / "logs" / "text.log", gpu=-1, timeout_s=options.timeout_s) as worker:
        try:
            tokens = worker.call(count_tokens, None, source.files, corpus.text)
        except CorpusError:
            raise
        except HarnessError:
            return
    require_windows(corpus.name, tokens, options.ctx, options.chunks)


def _source(planned: PlannedModel | None) -> ModelSource | None:
    """The file with the vocabulary of a model."""
    while planned is not None and planned.source is None:
        planned = planned.base
    return planned.source if planned is not None else None
