"""What a model attends to while it reads a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.api.arguments import chosen, whole
from gguf_harness.api.pictures import Picture
from gguf_harness.api.summaries import first_pieces, short_repr, summary_html
from gguf_harness.errors import ModelError, OptionError
from gguf_harness.measure.live.reading import Reading
from gguf_harness.measure.live.requests import ModelFacts
from gguf_harness.views.reading_data import attention_view, steps_view

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Attention", "attention_of", "attention_picture", "steps_picture"]

F32 = NDArray[np.float32]

_MOST_CELLS: Final = 4_000_000
"""Weights in one picture: 5 MB of text. Of longer prompts, the first tokens are shown."""
_MOST_TOKENS: Final = 160
_STEPS_TOKENS: Final = 96
"""Tokens of a picture of steps, which writes out a number for each pair."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Attention:
    """The attention of one prompt, as llama.cpp computed it; all float32.

        attention = model.attention("The cat sat on the mat")
        attention.pattern[attention.layers.index(2), 7]    # layer 2, head 7: [pos, key]
        attention.plot(layer=2, head=7)

    Attributes:
        tokens: [pos] token ids, including BOS if the vocabulary requires it.
        pieces: [pos] their text; parts of characters are shown as U+FFFD.
        layers: numbers of the layers, the first axis of the following arrays: all layers with attention, which are few
            in hybrids, or those that were chosen.
        heads: numbers of the heads, the second axis of pattern and scores: all, or those that were chosen.
        pattern: [layer, head, pos, key] attention weights: rows sum to one, keys after the position are 0.
        scores: [layer, head, pos, key] q k^T: not masked, and scaled only if the model scales q first. None where
            llama.cpp does not name them in this architecture, as q, k and v.
        q: [layer, pos, head, d_head] queries, after rope.
        k: [layer, pos, kv_head, d_head] keys, after rope: of all heads of keys, whichever heads were chosen.
        v: [layer, pos, kv_head, d_head] values, of all heads of values.
    """

    tokens: NDArray[np.int32]
    pieces: tuple[str, ...]
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    pattern: F32
    scores: F32 | None
    q: F32 | None
    k: F32 | None
    v: F32 | None
    _reading: Reading = field(repr=False)

    def plot(
        self,
        *,
        layer: int | None = None,
        head: int | None = None,
        layers: Iterable[int] | None = None,
        heads: Iterable[int] | None = None,
        tokens: Iterable[int] | slice | None = None,
    ) -> Picture:
        """All heads as tiles, and one of them over its tokens: each token has a row and a column of its own.

        Args:
            layer: of the head that is seen first.
            head: that is seen first.
            layers: those that are shown; all if not given.
            heads: those that are shown; all if not given.
            tokens: places of those that are shown, or a slice; the first ones if not given.

        Raises:
            OptionError: a layer, head or token is not there.
            NoData: tokens attend to later ones too, as in an encoder.
        """
        places = self._places(layers, heads)
        return attention_picture(
            [self._reading], layer=layer, head=head, places=places, tokens=_token_places(tokens, len(self.tokens))
        )

    def steps(self, layer: int, head: int) -> Picture:
        """How a head computes its output: for each query, products with the keys, weights, and sizes of the values.

        Raises:
            NoData: there is no such head, or llama.cpp does not name queries, keys and values.
        """
        return steps_picture([self._reading], layer, head)

    def to_frame(self, *, layers: Iterable[int] | None = None, heads: Iterable[int] | None = None) -> pd.DataFrame:
        """A row for each weight: layer, head, query and key (Int64), their texts (string), weight (float64).

        Weights that are zero because the key comes later are left out.

        Args:
            layers: those in the table; all if not given.
            heads: those in the table; all if not given.
        """
        from gguf_harness.api.long_frames import make_frame

        at = [self.layers.index(layer) for layer in chosen(layers, self.layers, "layer")]
        which = [self.heads.index(head) for head in chosen(heads, self.heads, "head")]
        n = len(self.tokens)
        causal = self._reading.facts.causal
        queries, keys = np.tril_indices(n) if causal else (rows.ravel() for rows in np.indices((n, n)))
        pairs, cells = len(at) * len(which), len(queries)
        texts = np.array(self.pieces, dtype=object)
        weights = self.pattern[np.ix_(at, which)][:, :, queries, keys]
        return make_frame(
            {
                "layer": ("whole", np.repeat([self.layers[each] for each in at], len(which) * cells)),
                "head": ("whole", np.tile(np.repeat([self.heads[each] for each in which], cells), len(at))),
                "query": ("whole", np.tile(queries, pairs)),
                "key": ("whole", np.tile(keys, pairs)),
                "token": ("text", np.tile(texts[queries], pairs)),
                "attended": ("text", np.tile(texts[keys], pairs)),
                "weight": ("number", weights.ravel().astype(np.float64)),
            }
        )

    def __repr__(self) -> str:
        return short_repr("Attention", {"model": self._reading.facts.name} | self._facts())

    def _repr_html_(self) -> str:
        return summary_html(
            f"Attention of {self._reading.facts.name}{_off(self._reading)}",
            {"tokens": first_pieces(self.pieces)} | {name: _told(value) for name, value in self._facts().items()},
            "`.plot()` draws it, `.plot(layer=…, head=…)` begins with a head, `.steps(layer, head)` shows how it comes"
            " about, `.to_frame()` is a table of all weights.",
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "tokens": len(self.tokens),
            "layers": _run(self.layers),
            "heads": _run(self.heads),
            "pattern": self.pattern,
        }

    def _places(self, layers: Iterable[int] | None, heads: Iterable[int] | None) -> set[tuple[int, int]] | None:
        if layers is None and heads is None and self._is_whole():
            return None
        numbers = chosen(heads, self.heads, "head")
        return {(layer, head) for layer in chosen(layers, self.layers, "layer") for head in numbers}

    def _is_whole(self) -> bool:
        facts = self._reading.facts
        return self.layers == facts.attention_layers and len(self.heads) == max(facts.heads, default=0)


def attention_of(reading: Reading, layers: Iterable[int] | None, heads: Iterable[int] | None) -> Attention:
    """The attention of a reading, of some layers and heads.

    Raises:
        ModelError: it cannot be read, or differs in shape between the layers.
        OptionError: a layer or head is not there.
    """
    facts = reading.facts
    numbers = chosen(layers if facts.attention_layers else None, facts.attention_layers, "layer")
    stacked = {
        kind: _stacked(facts, kind, getattr(reading, kind), numbers) for kind in ("pattern", "scores", "q", "k", "v")
    }
    pattern, scores, q = (stacked[kind] for kind in ("pattern", "scores", "q"))
    if pattern is None:
        raise ModelError(f"{facts.name}: its attention cannot be read.", " ".join(facts.missing))
    which = chosen(heads, range(pattern.shape[1]), "head")
    if len(which) < pattern.shape[1]:
        rows = list(which)
        pattern = pattern[:, rows]
        scores, q = (None if scores is None else scores[:, rows]), (None if q is None else q[:, :, rows])
    return Attention(
        tokens=reading.tokens,
        pieces=reading.texts,
        layers=numbers,
        heads=which,
        pattern=pattern,
        scores=scores,
        q=q,
        k=stacked["k"],
        v=stacked["v"],
        _reading=reading,
    )


def attention_picture(
    readings: Sequence[Reading],
    *,
    layer: int | None = None,
    head: int | None = None,
    places: set[tuple[int, int]] | None = None,
    tokens: Sequence[int] | None = None,
) -> Picture:
    """The view `attention` of a prompt that one or more models have read.

    Raises:
        OptionError: the head that is to be seen first is not shown.
        NoData: there is no attention that the view shows.
    """
    facts = readings[0].facts
    shown = set(facts.all_heads) if places is None else places
    side = min(_MOST_TOKENS, int((2 * _MOST_CELLS / max(1, len(shown) * len(readings))) ** 0.5))
    data = attention_view(readings, max(2, side), heads=places, places=tokens)
    names = [f"{each.facts.name}{_off(each)}" for each in readings]
    total = len(readings[0].tokens)
    count = min(max(2, side), total if tokens is None else len(tokens))
    return Picture(
        "attention",
        data,
        f"Attention of {' and '.join(dict.fromkeys(names))}",
        f"{f'All {total}' if count == total else f'{count} of {total}'} tokens of the prompt, {len(shown)} heads.",
        _first_head(facts, shown, layer, head),
    )


def steps_picture(readings: Sequence[Reading], layer: int, head: int) -> Picture:
    """The view `qkv` of a head of one or more models.

    Raises:
        NoData: the first has no such head, or no queries, keys and values.
    """
    numbers = whole(layer, "layer"), whole(head, "head")
    facts = readings[0].facts
    if numbers not in set(facts.all_heads):
        raise OptionError(f"{facts.name} has no head {numbers[0]}.{numbers[1]}.", _heads_told(facts))
    data = steps_view(readings, *numbers, _STEPS_TOKENS)
    return Picture(
        "qkv",
        data,
        f"How layer {numbers[0]}, head {numbers[1]} of {facts.name} computes its output",
        "Choose a query: each row is a key that it sees, with their product, its weight, and the size of its value.",
    )


def _first_head(
    facts: ModelFacts, shown: set[tuple[int, int]], layer: int | None, head: int | None
) -> dict[str, list[int]]:
    if layer is None and head is None:
        return {}
    wanted = [
        place
        for place in sorted(shown)
        if (layer is None or place[0] == whole(layer, "layer")) and (head is None or place[1] == whole(head, "head"))
    ]
    if not wanted:
        raise OptionError(
            f"There is no head {'any' if layer is None else layer}.{'any' if head is None else head} to show.",
            _heads_told(facts),
        )
    return {"head": list(wanted[0])}


def _token_places(tokens: Iterable[int] | slice | None, count: int) -> list[int] | None:
    if tokens is None:
        return None
    if isinstance(tokens, slice):
        places = sorted(range(count)[tokens])
        if not places:
            raise OptionError(f"The slice {tokens} has none of the {count} tokens.", "Give slice(0, 16), for example.")
        return places
    return list(chosen(tokens, range(count), "token"))


def _stacked(facts: ModelFacts, kind: str, by_layer: Mapping[int, F32], layers: Sequence[int]) -> F32 | None:
    if not by_layer:
        return None
    parts = [by_layer[layer] for layer in layers]
    shapes = dict.fromkeys(values.shape for values in parts)
    if len(shapes) > 1:
        raise ModelError(
            f"{facts.name}: {kind} differs in shape between layers ({', '.join(map(str, shapes))}), so they do not fit"
            " into one array.",
            "Choose layers of one shape with layers=[...], or use suites/attention, which measures layer by layer.",
        )
    return np.stack(parts)


def _heads_told(facts: ModelFacts) -> str:
    counts = ", ".join(f"{layer}: {count}" for layer, count in enumerate(facts.heads) if count)
    return f"Heads by layer are {counts or 'none'}."


def _off(reading: Reading) -> str:
    return f" with {reading.ablation}" if reading.ablation else ""


def _run(numbers: Sequence[int]) -> str:
    """`0 to 29`, or all of them where they are no run."""
    if len(numbers) > 2 and list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _told(value: Any) -> str:
    return " × ".join(map(str, value.shape)) if isinstance(value, np.ndarray) else str(value)
