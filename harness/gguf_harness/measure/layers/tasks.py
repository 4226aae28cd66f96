"""Measurements of the layers of a model from its hidden states, and the distance of a candidate's from its reference's.

Runs in a worker. One decode per prompt gives all results.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.engine.lanes import count_lanes
from gguf_harness.errors import FilesLost, ModelError, NoData
from gguf_harness.inputs.adapters import adapted_tensors
from gguf_harness.measure.layers.states import (
    KINDS,
    LayersRequest,
    PromptTokens,
    StateFiles,
    decode_states,
    prompt_tokens,
)
from gguf_harness.measure.layers.unembedding import ModelFile, find_head
from gguf_harness.metrics.divergence import DivergenceKernel
from gguf_harness.metrics.hidden import (
    cka_with_error,
    dimensions,
    massive_activations,
    massive_per_token,
    outlier_kurtosis,
    relative_errors,
    token_similarity,
    update_share,
)
from gguf_harness.metrics.kernels.directions import cosine, norms
from gguf_harness.metrics.kernels.log_softmax import log_softmax
from gguf_harness.metrics.lens import Head, attribute, decided_at, logit_lens, normalize
from gguf_harness.store.arrays import load_arrays

if TYPE_CHECKING:
    from gguf_harness.engine.model import Model
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.store.arrays import Arrays

__all__ = ["STATES_FOLDER", "LayersResult", "has_states", "kld_rows", "measure_layers", "nll_rows", "stored_tokens"]

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

STATES_FOLDER: Final = "states"
_FEWEST_TOKENS: Final = 4
"""Fewest tokens of a prompt, without its first, for which the shape of its states is meaningful."""


@dataclass(frozen=True, slots=True)
class LayersResult:
    """The result.

    Attributes:
        arrays: per layer and token or prompt; see `measure_layers`.
        facts: JSON types: prompts, problems, pieces (text by token), massive (activations by layer), states (size and
            checksum of the files of hidden states that are kept).
    """

    arrays: Arrays
    facts: dict[str, Any]


def measure_layers(worker: WorkerContext, request: LayersRequest, reference: Path | None, keep: bool) -> LayersResult:
    """Decode the prompts once, and compute all measurements of the hidden states.

    Args:
        worker: that the task runs in.
        request: the model.
        reference: folder of the cache entry of the reference, whose tokens are decoded, and whose states are compared
            with; None to measure the model alone.
        keep: keep the states on disk: the reference's, for comparisons with candidates.

    Returns:
        n tokens, of all prompts one after the other; layers L; prompts P; NaN for unknown values.
        tokens [n], starts [P + 1], nll [n] of the next token (NaN for the last of a prompt);
        norm_embed [n]; norm, attn_share, mlp_share, attn_cosine, mlp_cosine, massive [L, n];
        similarity, similarity_centered, effective_rank, participation_ratio, kurtosis [L, P];
        final_norm_gain, final_norm_cosine [n]; attn_norm_gain, mlp_norm_gain [L, n] where the file has their weights;
        lens_top, lens_p, lens_final_p, lens_entropy, lens_kl [L, n]; lens_decided [n];
        direct_embed, direct_constant, direct_logit [n]; direct_attn, direct_mlp [L, n];
        with a reference also kld [n], error_* and cosine_* [L, n] for `KINDS`, or [n] for embed and final, and cka,
        cka_se [L].

    Raises:
        HarnessError: the model cannot be decoded, its stream cannot be read, or the reference has another shape.
    """
    model = worker.model(request.files, request.settings.n_gpu_layers)
    given = prompt_tokens(model, request) if reference is None else stored_tokens(reference)
    files = decode_states(worker, model, count_lanes(request.settings), request, given)
    try:
        arrays: Arrays = {"tokens": given.tokens, "starts": given.starts, "nll": _next_nll(files, given)}
        arrays |= _stream(files, given) | _shapes(files, given)
        facts: dict[str, Any] = {"prompts": list(given.ids), "problems": given.problems, "lens_problem": None}
        facts["massive"] = _massive(files, given)
        try:
            arrays |= _lens(request, files)
        except NoData as error:
            facts["lens_problem"] = error.message
        facts["pieces"] = _pieces(model, arrays)
        if reference is not None:
            arrays |= _compare(request, files, StateFiles(reference / STATES_FOLDER), given)
        facts["states"] = {"bytes": files.sizes, "crc": files.checksums} if keep else {}
    finally:
        if not keep:
            files.remove()
    return LayersResult(arrays, facts)


def has_states(folder: Path, facts: dict[str, Any]) -> bool:
    """Whether all hidden states that a measurement kept in its folder are still there."""
    kept = facts.get("states")
    return isinstance(kept, dict) and bool(kept) and kept["bytes"] == StateFiles(folder / STATES_FOLDER).sizes


def stored_tokens(entry: Path) -> PromptTokens:
    """The tokens of a stored measurement of a model.

    Raises:
        FilesLost: they or its hidden states are missing.
    """
    import json

    arrays = load_arrays(entry / "arrays.npz")
    try:
        facts = json.loads((entry / "meta.json").read_text(encoding="utf-8"))["value"]
        if not has_states(entry, facts) or facts["states"]["crc"] != StateFiles(entry / STATES_FOLDER).checksums:
            raise FilesLost(f"Hidden states in {entry} are missing or damaged.", "Measure again with --gguf-fresh.")
        tokens, starts = arrays["tokens"].astype(np.int32), arrays["starts"].astype(np.int64)
        return PromptTokens(tuple(facts["prompts"]), tokens, starts, dict(facts["problems"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FilesLost(f"{entry} cannot be read: {error}.", "Measure again with --gguf-fresh.") from error


def nll_rows(logits: F32, targets: NDArray[np.int32]) -> F64:
    """[n] negative log-likelihood, in nats, of each target under [n, vocabulary] logits."""
    # One row at a time: in float64 all rows could take gigabytes.
    return np.array([-log_softmax(row)[target] for row, target in zip(logits, targets, strict=True)])


def kld_rows(reference: F32, logits: F32) -> F64:
    """[n] KL(reference || candidate), in nats, of rows of raw logits: exactly 0 for equal rows."""
    kernel = DivergenceKernel(logits.shape[1])
    return np.array([kernel(own - own.max(), other).values[0] for own, other in zip(reference, logits, strict=True)])


def _next_nll(files: StateFiles, given: PromptTokens) -> F64:
    nll = np.full(len(given.tokens), np.nan)
    predicts = np.flatnonzero(given.predicts)
    logits = files.load("logits")
    for index in predicts:
        nll[index] = nll_rows(logits[index : index + 1], given.tokens[index + 1 : index + 2])[0]
    return nll


def _stream(files: StateFiles, given: PromptTokens) -> Arrays:
    """Norms of the stream, and updates of the blocks."""
    post, n = files.load("resid_post"), len(given.tokens)
    shape = (len(post), n)
    names = ("attn_share", "mlp_share", "attn_cosine", "mlp_cosine")
    arrays: Arrays = {name: np.full(shape, np.nan) for name in names}
    arrays |= {
        "norm": np.empty(shape),
        "massive": np.zeros(shape, dtype=np.int64),
        "norm_embed": norms(files.load("embed")),
    }
    for layer in range(len(post)):
        arrays["norm"][layer] = norms(post[layer])
        arrays["massive"][layer] = massive_per_token(post[layer])
        for name, kind in (("attn", "attn_out"), ("mlp", "mlp_out")):
            if kind not in files or np.isnan(files.load(kind)[layer, 0, 0]):
                continue
            update = files.load(kind)[layer]
            stream = files.inputs(layer) if name == "attn" else files.load("resid_mid")[layer]
            arrays[f"{name}_share"][layer] = update_share(update, stream)
            arrays[f"{name}_cosine"][layer] = cosine(update, stream)
    last, final = post[-1], files.load("final")
    return arrays | {"final_norm_gain": norms(final) / norms(last), "final_norm_cosine": cosine(final, last)}


def _shapes(files: StateFiles, given: PromptTokens) -> Arrays:
    """The shape of the states of each prompt without its first token, which is an attention sink in many models.

    (Xiao et al. 2024, "Efficient Streaming Language Models with Attention Sinks": its norm dwarfs those of the others.)
    """
    post = files.load("resid_post")
    names = ("similarity", "similarity_centered", "effective_rank", "participation_ratio", "kurtosis")
    arrays: Arrays = {name: np.full((len(post), len(given.ids)), np.nan) for name in names}
    for layer in range(len(post)):
        for index, part in enumerate(given.slices):
            states = post[layer, part.start + 1 : part.stop].astype(np.float64)
            if len(states) < _FEWEST_TOKENS:
                continue
            for name, value in _shape(states).items():
                arrays[name][layer, index] = value
    return arrays


def _shape(states: F64) -> dict[str, float]:
    try:
        filled = dimensions(states)
        return {
            "similarity": token_similarity(states, centered=False),
            "similarity_centered": token_similarity(states, centered=True),
            "effective_rank": filled.effective_rank,
            "participation_ratio": filled.participation_ratio,
            "kurtosis": outlier_kurtosis(states),
        }
    except NoData:
        return {}  # one repeated token, with identical states


def _massive(files: StateFiles, given: PromptTokens) -> list[list[dict[str, Any]]]:
    """By layer: the largest massive activations and their places."""
    post = files.load("resid_post")
    activations = []
    for layer in range(len(post)):
        rows = []
        for entry in massive_activations(post[layer]):
            index = int(np.searchsorted(given.starts, entry.token, side="right")) - 1
            rows.append(
                {
                    "dimension": entry.dimension,
                    "prompt": given.ids[index],
                    "position": entry.token - int(given.starts[index]),
                    "value": entry.value,
                    "ratio": entry.ratio,
                }
            )
        activations.append(rows)
    return activations


def _lens(request: LayersRequest, files: StateFiles) -> Arrays:
    """The logit lens, direct logit attribution, and gains of the norms."""
    weights = ModelFile(request.files)
    unembedding = "output.weight" if "output.weight" in weights else "token_embd.weight"
    for adapter in request.settings.adapters:
        if unembedding in adapted_tensors(adapter):
            raise NoData(
                f"The logit lens is not offered for {request.model}: the adapter {adapter.name} changes {unembedding},"
                " which the lens reads from the model's file."
            )
    post, logits = files.load("resid_post"), files.load("logits")
    head = find_head(weights, post[-1], files.load("final"), logits)
    lens = logit_lens(head, list(post))
    arrays: Arrays = {
        "lens_top": lens.top,
        "lens_p": lens.top_p,
        "lens_final_p": lens.final_p,
        "lens_entropy": lens.entropy,
        "lens_kl": lens.kl,
        "lens_decided": decided_at(lens.top),
        "output_top": files.load("logits").argmax(axis=-1),
    }
    return arrays | _direct(files, head, lens.top[-1]) | _norm_gains(weights, files, head)


def _direct(files: StateFiles, head: Head, tokens: NDArray[np.int64]) -> Arrays:
    post = files.load("resid_post")
    shape = (len(post), len(tokens))
    arrays: Arrays = {name: np.full(shape, np.nan) for name in ("direct_attn", "direct_mlp")}
    if "resid_mid" not in files:
        return {}
    # If the first block's attention is unknown, its output stream counts as the embeddings' part.
    unknown = bool(np.isnan(files.load("attn_out")[0, 0, 0]))
    first = files.load("resid_mid")[0] if unknown else files.load("embed")
    (embed,), constant = attribute(head, post[-1], [first], tokens)
    for layer in range(len(post)):
        parts = (files.load("attn_out")[layer], files.load("mlp_out")[layer])
        (attention, mlp), _ = attribute(head, post[-1], parts, tokens)
        arrays["direct_attn"][layer], arrays["direct_mlp"][layer] = attention, mlp
    (whole,), _ = attribute(head, post[-1], [post[-1]], tokens)
    return arrays | {"direct_embed": embed, "direct_constant": constant, "direct_logit": whole + constant}


def _norm_gains(weights: ModelFile, files: StateFiles, head: Head) -> Arrays:
    """Norm of the inputs of attention and MLP, after their norm, divided by that of the stream."""
    n_layer = len(files.load("resid_post"))
    gains_by_name: Arrays = {}
    for name, tensor in (("attn", "attn_norm"), ("mlp", "ffn_norm")):
        gains = [weights.vector(f"blk.{layer}.{tensor}.weight") for layer in range(n_layer)]
        if any(gain is None for gain in gains) or (name == "mlp" and "resid_mid" not in files):
            continue
        rows = []
        for layer, gain in enumerate(gains):
            stream = files.inputs(layer) if name == "attn" else files.load("resid_mid")[layer]
            bias = weights.vector(f"blk.{layer}.{tensor}.bias")
            rows.append(norms(normalize(stream, head.norm, head.eps, gain, bias)) / norms(stream))
        gains_by_name[f"{name}_norm_gain"] = np.array(rows)
    return gains_by_name


def _pieces(model: Model, arrays: Arrays) -> dict[str, str]:
    """Text of the first prompt's tokens, and of the lens's predictions there."""
    part = slice(0, int(arrays["starts"][1]))
    tokens = [arrays["tokens"][part]]
    if "lens_top" in arrays:
        tokens.append(arrays["lens_top"][:, part].ravel())
    wanted = np.unique(np.concatenate(tokens)).tolist()
    return {str(token): model.detokenize([token], special=True).decode("utf-8", "replace") for token in wanted}


def _compare(request: LayersRequest, files: StateFiles, base: StateFiles, given: PromptTokens) -> Arrays:
    """Compare the states of a candidate with the reference's, token by token."""
    own, other = (each.load("resid_post").shape for each in (files, base))
    if own != other or files.load("logits").shape != base.load("logits").shape:
        raise ModelError(
            f"{request.model} has {own[0]} layers of width {own[2]}, its reference {other[0]} of {other[2]}.",
            "Compare models of the same shape layer by layer.",
        )
    arrays: Arrays = {"kld": kld_rows(base.load("logits"), files.load("logits"))}
    for name in ("embed", "final"):
        arrays[f"error_{name}"] = relative_errors(files.load(name), base.load(name))
        arrays[f"cosine_{name}"] = cosine(files.load(name), base.load(name))
    n_layer = own[0]
    for kind in KINDS:
        if kind not in files or kind not in base:
            continue
        arrays |= {f"{what}_{kind}": np.full(own[:2], np.nan) for what in ("error", "cosine")}
        for layer in range(n_layer):
            mine, theirs = files.load(kind)[layer], base.load(kind)[layer]
            if not np.isnan(theirs[0, 0]):
                arrays[f"error_{kind}"][layer] = relative_errors(mine, theirs)
                arrays[f"cosine_{kind}"][layer] = cosine(mine, theirs)
    pairs = [
        cka_with_error(files.load("resid_post")[layer], base.load("resid_post")[layer], given.starts)
        for layer in range(n_layer)
    ]
    arrays["cka"] = np.array([value for value, _ in pairs])
    arrays["cka_se"] = np.array([np.nan if error is None else error for _, error in pairs])
    return arrays
