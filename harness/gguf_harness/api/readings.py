"""What was read of the last prompts, so that several questions about one of them cost one decode."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

from gguf_harness.api.arguments import Read
from gguf_harness.errors import CorpusError, PromptError
from gguf_harness.measure.live.live_model import LiveModel
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import Ablation

__all__ = ["EVERYTHING", "Readings"]

ATTENTION: Final = frozenset({"pattern", "scores", "q", "k", "v"})
EVERYTHING: Final = ATTENTION | {"states", "logits"}
_KEPT: Final = 4
_MOST_BYTES: Final = 1_000_000_000


class Readings:
    """The last readings of a loaded model, a gigabyte at most, but for the last one.

    Args:
        live: the model.
    """

    def __init__(self, live: LiveModel) -> None:
        self._live = live
        self._kept: OrderedDict[tuple[Read, Ablation], tuple[Reading, frozenset[str]]] = OrderedDict()

    def get(self, prompt: Read, ablation: Ablation, parts: frozenset[str]) -> Reading:
        """A reading with these parts at least.

        Everything is read at once: it is the same decode. What was asked for alone is read where all of it would take
        too much memory, and where something is off: that is often tried head by head, with one question each.

        Args:
            prompt: the prompt.
            ablation: what is switched off.
            parts: of `EVERYTHING`.

        Raises:
            HarnessError: the model cannot take the prompt, or it would take too much memory.
        """
        key = prompt, ablation
        known = self._kept.get(key)
        if known is not None and known[1] >= parts:
            self._kept.move_to_end(key)
            return known[0]
        wanted = (known[1] if known else frozenset()) | parts if ablation else EVERYTHING
        try:
            reading, read = self._read(prompt, ablation, wanted), wanted
        except CorpusError:
            if parts == wanted:
                raise
            reading, read = self._read(prompt, ablation, parts), parts
        self._kept[key] = reading, read
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and (len(self._kept) > _KEPT or self._bytes() > _MOST_BYTES):
            self._kept.popitem(last=False)
        return reading

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()

    def _read(self, prompt: Read, ablation: Ablation, parts: frozenset[str]) -> Reading:
        """Unlike in a suite, there are no other prompts to fall back on."""
        try:
            return self._live.read(
                prompt, ablation, attention=parts & ATTENTION, states="states" in parts, logits="logits" in parts
            )
        except PromptError as error:
            raise PromptError(
                error.message, "Give a prompt of at least one token that fits into the context."
            ) from None

    def _bytes(self) -> int:
        return sum(_size(reading) for reading, _ in self._kept.values())


def _size(reading: Reading) -> int:
    parts = (reading.pattern, reading.scores, reading.q, reading.k, reading.v, reading.states)
    size = sum(values.nbytes for part in parts for values in part.values())
    return size + (0 if reading.logits is None else reading.logits.nbytes)
