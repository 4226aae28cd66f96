"""The residual stream of a model while it reads a prompt."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gguf_harness.api.arguments import place_of
from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import first_pieces, short_repr, summary_html
from gguf_harness.errors import ModelError
from gguf_harness.measure.live.reading import Reading
from gguf_harness.views.reading_data import stream_view

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["HiddenStates", "hidden_states_of"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HiddenStates:
    """The hidden states of one prompt, as llama.cpp computed them; all float32.

    If llama.cpp names only the stream after a block in an architecture, the states inside the block are None. Layers
    whose input is unknown (the first one in models with position embeddings) have NaN for derived states.

        states = model.hidden_states("The cat sat on the mat")
        states.resid_post[2, -1]    # [d_model] after layer 2, of the last token

    Attributes:
        tokens: [pos] token ids, including BOS if the vocabulary requires it.
        pieces: [pos] their text; parts of characters are shown as U+FFFD.
        embed: [pos, d_model] the input of the first block: token embeddings, scaled if the model does so.
        resid_mid: [layer, pos, d_model] the residual stream between attention and MLP.
        attn_out: [layer, pos, d_model] attention's update of the stream.
        mlp_out: [layer, pos, d_model] the MLP's update of the stream.
        resid_post: [layer, pos, d_model] the stream after each block, before the final norm.
    """

    tokens: NDArray[np.int32]
    pieces: tuple[str, ...]
    embed: F32
    resid_mid: F32 | None
    attn_out: F32 | None
    mlp_out: F32 | None
    resid_post: F32
    _reading: Reading = field(repr=False)

    def plot(self, place: int = -1) -> Picture:
        """Sizes of the stream, and of what attention and MLP add to it, layer by layer at one place of the prompt.

        Args:
            place: of the token, counted from 0; negative ones from the end.

        Raises:
            OptionError: the prompt is shorter.
        """
        at = place_of(place, len(self.tokens))
        return Picture(
            "lines",
            stream_view([self._reading], at),
            f"The stream of {self._reading.facts.name} at token {at}, {self.pieces[at]!r}",
            "Euclidean norms of the residual stream after each block, and of what is added to it.",
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each layer and token: layer, position (Int64), token (string), and the norms of the states.

        The norms, float64, are those of the residual stream after the block (resid_post), between attention and MLP
        (resid_mid), and of what attention and MLP add (attn_out, mlp_out); NaN where they are not known. The states
        themselves are arrays.
        """
        from gguf_harness.api.long_frames import make_frame

        layers, n = self.resid_post.shape[:2]
        parts = {name: getattr(self, name) for name in ("resid_post", "resid_mid", "attn_out", "mlp_out")}
        return make_frame(
            {
                "layer": ("whole", np.repeat(np.arange(layers), n)),
                "position": ("whole", np.tile(np.arange(n), layers)),
                "token": ("text", list(self.pieces) * layers),
                **{name: ("number", _norms(values, layers * n)) for name, values in parts.items()},
            }
        )

    def __repr__(self) -> str:
        return short_repr("HiddenStates", {"model": self._reading.facts.name} | self._facts())

    def _repr_html_(self) -> str:
        facts = {name: str(getattr(value, "shape", value)) for name, value in self._facts().items()}
        return summary_html(
            f"Hidden states of {self._reading.facts.name}",
            {"tokens": first_pieces(self.pieces)} | {name: facts[name] for name in facts if name != "tokens"},
            "`.plot(place)` draws the sizes of the stream at a token, `.to_frame()` is a table of them.",
        )

    def _facts(self) -> dict[str, Any]:
        names = ("embed", "resid_mid", "attn_out", "mlp_out", "resid_post")
        return {"tokens": len(self.tokens)} | {name: getattr(self, name) for name in names}


def hidden_states_of(reading: Reading) -> HiddenStates:
    """The states of a reading.

    Raises:
        ModelError: they cannot be read.
    """
    states = reading.states
    if not states:
        raise ModelError(f"{reading.facts.name}: its residual stream cannot be read.", " ".join(reading.facts.missing))
    return HiddenStates(
        tokens=reading.tokens,
        pieces=reading.texts,
        embed=states["embed"],
        resid_mid=states.get("resid_mid"),
        attn_out=states.get("attn_out"),
        mlp_out=states.get("mlp_out"),
        resid_post=states["resid_post"],
        _reading=reading,
    )


def _norms(values: F32 | None, count: int) -> NDArray[np.float64]:
    if values is None:
        return np.full(count, np.nan)
    return np.asarray(np.linalg.norm(values.astype(np.float64), axis=-1).ravel())
