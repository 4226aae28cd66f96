"""What the layers of a model worked on when it decoded some windows: where a decode with a change can begin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from gguf_harness.engine.lanes import count_lanes
from gguf_harness.errors import TapNotFound
from gguf_harness.measure.heads.layout import HeadLayout, stream_tap, z_tap

if TYPE_CHECKING:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.measure.heads.distributions import Distributions, Values

__all__ = ["States", "decode_windows", "read_states"]

_MOST_STREAM_BYTES: Final = 1 << 30
"""Most bytes of residual streams that are kept: 4 windows of 80 layers of width 8,192. For later layers, all that is
before a change is computed.
"""


@dataclass(frozen=True, slots=True)
class States:
    """What the layers of a model worked on when it decoded some windows.

    Attributes:
        z: of each layer with heads, [windows, n_ctx, width].
        streams: the residual stream that enters a layer, [windows, n_ctx, d_model]; not of the first one, whose is
            computed from the tokens, nor where llama.cpp does not name it.
    """

    z: Mapping[int, Values]
    streams: Mapping[int, Values]

    def known(self, layer: int, windows: Sequence[int]) -> dict[str, Values]:
        """By tap, what is known of a batch of these windows in which nothing has changed before z of this layer."""
        taps = {z_tap(layer): self.z[layer]} | (
            {stream_tap(layer): self.streams[layer]} if layer in self.streams else {}
        )
        return {tap: values[windows].reshape(-1, values.shape[-1]) for tap, values in taps.items()}


def read_states(model: Model, settings: SessionSettings, layout: HeadLayout, kept: Distributions) -> States:
    """Decode the unchanged windows: fill the distributions, and return what each layer worked on.

    Args:
        model: the loaded model.
        settings: as for `Patched`; batches are those of one of its contexts.
        layout: the model's heads.
        kept: has the windows, and takes the distributions.
    """
    try:
        return _read_states(model, settings, layout, kept, streams=True)
    except TapNotFound:
        # Either the stream has no name in this architecture, or z, which the second decode tells.
        return _read_states(model, settings, layout, kept, streams=False)


def _read_states(
    model: Model, settings: SessionSettings, layout: HeadLayout, kept: Distributions, *, streams: bool
) -> States:
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    read: dict[str, list[Values]] = {z_tap(layer): [] for layer in layout.layers}
    entering: dict[str, list[Values]] = {stream_tap(layer): [] for layer in layout.layers if layer and streams}
    read |= entering
    stream_bytes = 0

    def keep(tap: str, values: Values) -> None:
        nonlocal stream_bytes
        if tap in entering:
            stream_bytes += values.nbytes
        if tap not in entering or stream_bytes <= _MOST_STREAM_BYTES:
            read[tap].append(values)

    taps = Taps(layout.architecture, len(layout.heads), read=dict.fromkeys(read, keep))
    count, n = kept.windows.shape
    settings = settings.lane(count_lanes(settings))
    with Context(model, settings, taps) as context:
        for start in range(0, count, settings.n_seq):
            group = range(start, min(start + settings.n_seq, count))
            for window, logits in zip(group, decode_windows(context, kept.windows[group], kept.first), strict=True):
                kept.keep(window, logits)
    complete = {
        tap: np.concatenate(parts).reshape(count, n, -1)
        for tap, parts in read.items()
        if sum(map(len, parts)) == count * n
    }
    return States(
        {layer: complete[z_tap(layer)] for layer in layout.layers},
        {layer: complete[stream_tap(layer)] for layer in layout.layers if stream_tap(layer) in complete},
    )


def decode_windows(context: Context, tokens: Tokens, first: int) -> list[Values]:
    """[scored, vocabulary] logits of each window, in one batch: views, valid until the next decode.

    Args:
        context: holds the batch.
        tokens: [windows, n_ctx].
        first: first scored position.
    """
    count, n = tokens.shape
    positions = np.tile(np.arange(n, dtype=np.int32), count)
    outputs = (positions >= first) & (positions < n - 1)
    context.clear()
    context.decode(tokens.ravel(), positions, np.repeat(np.arange(count, dtype=np.int32), n), outputs)
    return list(context.output_logits(int(outputs.sum())).reshape(count, n - 1 - first, -1))
