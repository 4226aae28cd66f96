"""Hidden states of prompts, decoded once and kept on disk for all measurements. Runs in a worker.

One file per tensor, float32: `attn_out`, `resid_mid`, `mlp_out` and `resid_post` are [layer, token, d_model], `embed`
and `final` (after the final norm) [token, d_model], `logits` [token, vocabulary]. Tokens of all prompts follow each
other. What llama.cpp does not name in an architecture follows from the residual stream before and after it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import Lanes
from gguf_harness.engine.settings import SessionSettings
from gguf_harness.errors import CorpusError, FilesLost, ModelError, NoPrompt, TapNotFound, write_error
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.measure.layers.unembedding import ModelFile
from gguf_harness.measure.prompt_inputs import prompt_inputs
from gguf_harness.store.arrays import file_checksum, map_array

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model, Tokens
    from gguf_harness.engine.worker_context import WorkerContext

__all__ = [
    "KINDS",
    "MOST_TOKENS",
    "NOT_ALONE",
    "HeldStates",
    "LayersRequest",
    "PromptTokens",
    "StateFiles",
    "States",
    "complete_states",
    "decode_states",
    "prompt_tokens",
    "short_settings",
]

F32 = NDArray[np.float32]

KINDS: Final = ("attn_out", "resid_mid", "mlp_out", "resid_post")
MOST_TOKENS: Final = 128
"""Most tokens used of a prompt: a long prompt would outweigh the others."""

NOT_ALONE: Final = ("position_embd.weight", "token_embd_norm.weight")
"""Tensors of models whose first block reads more than the token embeddings."""
_FITS: Final = 1e-3


@dataclass(frozen=True, slots=True)
class LayersRequest:
    """A request for hidden states: the model, the prompts, and the folder.

    Attributes:
        model: name for error messages.
        files: the GGUF file or its splits.
        settings: how to run it; contexts are made as long as the prompts.
        prompts: with distinct ids.
        folder: for the states; belongs to this measurement alone.
        limit_bytes: most bytes that they may take.
    """

    model: str
    files: tuple[Path, ...]
    settings: SessionSettings
    prompts: tuple[Prompt, ...]
    folder: Path
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class PromptTokens:
    """Tokens of all prompts that a model can take, one prompt after the other.

    Attributes:
        ids: of those prompts.
        tokens: [n].
        starts: [prompts + 1] where each begins, and where the last one ends.
        problems: by prompt: why the model cannot take it.
    """

    ids: tuple[str, ...]
    tokens: Tokens
    starts: NDArray[np.int64]
    problems: dict[str, str]

    @property
    def slices(self) -> list[slice]:
        """Slice of the tokens of each prompt."""
        return [slice(int(a), int(b)) for a, b in zip(self.starts[:-1], self.starts[1:], strict=True)]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return int(np.diff(self.starts).max())

    @property
    def predicts(self) -> NDArray[np.bool_]:
        """[n] whether the next token belongs to the same prompt: false for the last of each."""
        mask = np.ones(len(self.tokens), dtype=np.bool_)
        mask[self.starts[1:] - 1] = False
        return mask


class States(Protocol):
    """The states of one model by name, on disk or in memory."""

    def load(self, name: str) -> F32:
        """An array, to read."""

    def create(self, name: str, shape: tuple[int, ...]) -> F32:
        """An array, to fill."""

    def inputs(self, layer: int) -> F32:
        """[n, d_model] what a block reads: after the block before, or the embeddings."""
        return self.load("embed") if layer == 0 else self.load("resid_post")[layer - 1]

    def __contains__(self, name: str) -> bool: ...


class HeldStates(States):
    """The states of one text in memory.

    Args:
        arrays: by name, of which `embed` and `resid_post` are there.
    """

    def __init__(self, arrays: dict[str, F32]) -> None:
        self.arrays = arrays

    def load(self, name: str) -> F32:
        """The array itself."""
        return self.arrays[name]

    def create(self, name: str, shape: tuple[int, ...]) -> F32:
        """A new array in its place."""
        self.arrays[name] = np.empty(shape, dtype=np.float32)
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays


class StateFiles(States):
    """The states of one model on disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str) -> F32:
        """A memory map, to read.

        Raises:
            FilesLost: it is not there, or damaged.
        """
        file = self.folder / f"{name}.npy"
        try:
            return cast("F32", map_array(file))
        except (OSError, ValueError, EOFError) as error:
            raise FilesLost(f"{file} cannot be read: {error}.", "Measure again with --gguf-fresh.") from error

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by name."""
        return {file.stem: file.stat().st_size for file in sorted(self.folder.glob("*.npy"))}

    @property
    def checksums(self) -> dict[str, int]:
        """CRC-32 of each file, by name."""
        return {name: file_checksum(self.folder / f"{name}.npy") for name in self.sizes}

    def create(self, name: str, shape: tuple[int, ...]) -> F32:
        """A memory map, to write.

        Raises:
            StoreError: no space, or no permission.
        """
        file = self.folder / f"{name}.npy"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            array: F32 = np.lib.format.open_memmap(file, "w+", np.float32, shape)
        except OSError as error:
            raise write_error(file, error) from error
        return array

    def __contains__(self, name: str) -> bool:
        return (self.folder / f"{name}.npy").is_file()

    @property
    def kinds(self) -> list[str]:
        """The available `KINDS`."""
        return [kind for kind in KINDS if kind in self]

    def remove(self) -> None:
        """Delete the files."""
        shutil.rmtree(self.folder, ignore_errors=True)


def prompt_tokens(model: Model, request: LayersRequest) -> PromptTokens:
    """Tokens of each prompt, chats through the model's template, at most `MOST_TOKENS`.

    Raises:
        NoPrompt: the model can take none of them.
    """
    inputs, problems = prompt_inputs(model, request.model, request.prompts, 0, request.settings)
    if not inputs:
        first = next(iter(problems.values()))
        raise NoPrompt(f"No prompt can be decoded. {first.message}", first.hint)
    tokens = [np.asarray(tokens_of_prompt[:MOST_TOKENS], dtype=np.int32) for tokens_of_prompt, _ in inputs.values()]
    starts = np.concatenate([[0], np.cumsum([len(part) for part in tokens])]).astype(np.int64)
    return PromptTokens(
        tuple(inputs), np.concatenate(tokens), starts, {name: error.message for name, error in problems.items()}
    )


def decode_states(
    worker: WorkerContext, model: Model, lanes: int, request: LayersRequest, given: PromptTokens
) -> StateFiles:
    """Decode every prompt once, in parallel contexts, and keep all hidden states and logits.

    Raises:
        ModelError: the residual stream of this architecture cannot be read.
        CorpusError: the states would take more than the limit.
    """
    weights = ModelFile(request.files)
    n_layer, d_model = int(weights.number("block_count") or 0), int(weights.number("embedding_length") or 0)
    n, vocabulary = len(given.tokens), model.vocabulary.n_tokens
    _check_size(4 * n * ((4 * n_layer + 2) * d_model + vocabulary), n, request)
    settings = short_settings(request.settings, given.longest, lanes)
    kinds = readable_kinds(model, settings, weights.architecture, n_layer, request.model)
    files = StateFiles(request.folder)
    files.remove()
    stores = {kind: files.create(kind, (n_layer, n, d_model)) for kind in kinds}
    stores |= {name: files.create(name, (n, d_model)) for name in ("embed", "final")}
    logits = files.create("logits", (n, vocabulary))
    places: dict[str, F32] = {"embed": stores["embed"], "ln_final.normalized": stores["final"]}
    places |= {f"blocks.{layer}.{kind}": stores[kind][layer] for kind in kinds for layer in range(n_layer)}

    def decode(lane: _Lane, part: slice) -> None:
        logits[part] = lane.logits(given.tokens[part], part.start)
        if lane.filled != {part.stop}:
            raise ModelError(f"{request.model}: taps gave tokens up to {lane.filled}, not {part.stop}.")

    with Lanes(lanes, lambda: _Lane(model, settings, weights.architecture, n_layer, places)) as opened:
        for _ in opened.map(decode, given.slices, worker.progress):
            pass
    complete_states(files, all(name not in weights for name in NOT_ALONE))
    return files


class _Lane(contextlib.AbstractContextManager["_Lane"]):
    """A context that writes the values of its taps to the files."""

    def __init__(
        self, model: Model, settings: SessionSettings, architecture: str, n_layer: int, places: dict[str, F32]
    ) -> None:
        from gguf_harness.engine.context import Context
        from gguf_harness.engine.taps import Taps

        self._places = places
        self._filled: dict[str, int] = {}
        self._context = Context(model, settings, Taps(architecture, n_layer, read=dict.fromkeys(places, self._keep)))

    def logits(self, tokens: Tokens, start: int) -> F32:
        """[n, vocabulary] of a text whose states go to rows from `start` on."""
        self._filled = dict.fromkeys(self._places, start)
        return self._context.logits(tokens)

    @property
    def filled(self) -> set[int]:
        """End of the rows of the last text, which must be the same for all taps."""
        return set(self._filled.values())

    def _keep(self, tap: str, values: F32) -> None:
        # A prompt longer than a physical batch comes in several batches, in order.
        at = self._filled[tap]
        self._places[tap][at : at + len(values)] = values
        self._filled[tap] = at + len(values)

    def __exit__(self, *_: object) -> None:
        self._context.close()


def short_settings(settings: SessionSettings, longest: int, lanes: int) -> SessionSettings:
    """A context just long enough for the longest prompt, with its share of the threads."""
    return replace(
        settings,
        n_ctx=longest,
        n_batch=longest,
        n_ubatch=min(settings.n_ubatch, longest),
        threads=max(1, settings.threads // lanes),
    )


def readable_kinds(model: Model, settings: SessionSettings, architecture: str, n_layer: int, name: str) -> list[str]:
    """The `KINDS` that llama.cpp names in this architecture, found by decoding one token: usually all."""
    from gguf_harness.engine.context import Context
    from gguf_harness.engine.taps import Taps

    def offered(kinds: Sequence[str]) -> TapNotFound | None:
        names = ["embed", "ln_final.normalized"]
        names += [f"blocks.{layer}.{kind}" for kind in kinds for layer in range(n_layer)]
        read: dict[str, Any] = dict.fromkeys(names, lambda *_: None)
        try:
            with Context(model, settings, Taps(architecture, n_layer, read=read)) as context:
                context.logits(np.zeros(1, dtype=np.int32))
        except TapNotFound as error:
            return error
        return None

    if offered(KINDS) is None:
        return list(KINDS)
    missing = offered(["resid_post"])
    if missing is not None:
        raise ModelError(
            f"{name}: the residual stream of the architecture {architecture} cannot be read. {missing.message}",
            "Leave this model out.",
        ) from None
    return [kind for kind in KINDS if offered([kind]) is None]


def complete_states(files: States, alone: bool) -> None:
    """Add the tensors that llama.cpp did not name, and replace those that are not the update of the stream.

    `resid_mid` of models whose attention and MLP read the same stream is the stream plus only attention's update.

    Args:
        files: of the model.
        alone: whether the first block reads only the token embeddings; otherwise everything derived from its input is
            unknown, and NaN.
    """
    n_layer = len(files.load("resid_post"))
    for kind, (values, from_input) in _derivations(files).items():
        known = range(0 if alone or not from_input else 1, n_layer)
        if kind in files and all(_fits(files, kind, layer, values(layer)) for layer in known):
            continue
        store = files.create(kind, files.load("resid_post").shape)
        for layer in range(n_layer):
            store[layer] = values(layer) if layer in known else np.nan


def _derivations(files: States) -> dict[str, tuple[Callable[[int], F32], bool]]:
    """By kind: its values at a layer, and whether they are derived from the block's input."""
    post, before = files.load("resid_post"), files.inputs
    if "resid_mid" in files:
        middle = files.load("resid_mid")
        return {
            "attn_out": (lambda i: middle[i] - before(i), True),
            "mlp_out": (lambda i: post[i] - middle[i], False),
        }
    if "mlp_out" in files:
        mlp = files.load("mlp_out")
        return {
            "resid_mid": (lambda i: post[i] - mlp[i], False),
            "attn_out": (lambda i: post[i] - mlp[i] - before(i), True),
        }
    if "attn_out" in files:
        attention = files.load("attn_out")
        return {
            "resid_mid": (lambda i: before(i) + attention[i], True),
            "mlp_out": (lambda i: post[i] - before(i) - attention[i], True),
        }
    return {}


def _fits(files: States, kind: str, layer: int, expected: F32) -> bool:
    """Whether llama.cpp's tensor of this name agrees with the stream, up to rounding."""
    difference = files.load(kind)[layer] - expected
    return float(np.linalg.norm(difference)) <= _FITS * float(np.linalg.norm(files.load("resid_post")[layer]))


def _check_size(size: int, n: int, request: LayersRequest) -> None:
    if size > request.limit_bytes:
        raise CorpusError(
            f"{request.model}: the hidden states of {n} tokens of {len(request.prompts)} prompts would take"
            f" {size / 1e9:.1f} GB, the limit is {request.limit_bytes / 1e9:.1f} GB.",
            "Use fewer or shorter prompts (--gguf-prompts), or raise --gguf-logprobs-limit and --gguf-cache-limit.",
        )
