"""Layers: residual stream, updates, logit lens, errors against the reference, patching. Measured on prompts.

Computed in `gguf_harness.metrics.hidden` and `gguf_harness.metrics.lens`.
"""

from __future__ import annotations

import math
from typing import Final

from gguf_harness.metrics.registry.entry import Column, GatedBy, Metric, Part

__all__ = ["METRICS"]

_STATES: Final = GatedBy("layers", "test_states_stay_close_to_reference")
_LENS: Final = "nostalgebraist (2020), interpreting GPT: the logit lens."
_ELHAGE: Final = "Direct logit attribution: Elhage et al. (2021), A Mathematical Framework for Transformer Circuits."
_PATCHING: Final = (
    "Activation patching: Vig et al. (2020); Meng et al. (2022), Locating and Editing Factual Associations."
)
_BY_LAYER: Final[tuple[Part, ...]] = ("layer",)
_ANYTHING: Final = (-math.inf, math.inf)
_COSINE: Final = (-1.0, 1.0)


def _stream(
    name: str,
    title: str,
    meaning: str,
    definition: str,
    source: str = "This harness; norms are Euclidean, means over tokens.",
    unit: str = "",
    values: tuple[float, float] = _ANYTHING,
    parts: tuple[Part, ...] = _BY_LAYER,
) -> Metric:
    """A metric of a model's own states: neither direction is better."""
    return Metric(
        name=name,
        title=title,
        unit=unit,
        meaning=meaning,
        definition=definition,
        source=source,
        estimated="prompts",
        values=values,
        parts=parts,
    )


def _error(
    name: str, title: str, meaning: str, parts: tuple[Part, ...] = _BY_LAYER, column: Column | None = None
) -> Metric:
    return Metric(
        name=name,
        title=title,
        better="lower",
        meaning=meaning,
        definition="|x - y| / |y| of a token's state x and the reference's y, mean over tokens.",
        source="Relative error, as in numerical analysis.",
        estimated="prompts",
        values=(0.0, math.inf),
        parts=parts,
        column=column,
        tables=frozenset({"html"} if column else ()),
        gate=_STATES,
    )


def _cosine(name: str, title: str, meaning: str, parts: tuple[Part, ...] = _BY_LAYER) -> Metric:
    return Metric(
        name=name,
        title=title,
        better="higher",
        meaning=meaning,
        definition="x.y / (|x| |y|) of a token's state x and the reference's y, mean over tokens.",
        source="Cosine similarity.",
        estimated="prompts",
        values=_COSINE,
        parts=parts,
        gate=_STATES,
    )


METRICS: Final = (
    _stream(
        "resid_norm",
        "resid norm",
        "Norm of the residual stream after a block, per token.",
        "|x| of the stream after a block.",
    ),
    _stream(
        "resid_growth",
        "resid growth",
        "Norm after a block over that before it.",
        "Sum of |x| after a block / sum of |x| before it, over tokens.",
    ),
    _stream(
        "attn_share",
        "attn share",
        "Norm of attention's update over the stream's.",
        "|attention's update| / |stream that it is added to|.",
    ),
    _stream(
        "mlp_share",
        "MLP share",
        "Norm of the MLP's update over the stream's.",
        "|the MLP's update| / |stream that it is added to|.",
    ),
    _stream(
        "attn_update_cosine",
        "attn cosine",
        "Cosine of attention's update and the stream.",
        "Cosine of attention's update with the stream that it is added to.",
        values=_COSINE,
    ),
    _stream(
        "mlp_update_cosine",
        "MLP cosine",
        "Cosine of the MLP's update and the stream.",
        "Cosine of the MLP's update with the stream that it is added to.",
        values=_COSINE,
    ),
    _stream(
        "token_similarity",
        "token similarity",
        "Mean cosine of pairs of tokens of a prompt.",
        "mean of x.y / (|x| |y|) over pairs of different tokens of a prompt.",
        "Ethayarajh (2019), How Contextual are Contextualized Word Representations?, section 3.3.",
    ),
    _stream(
        "token_similarity_centered",
        "centered similarity",
        "The same without the prompt's mean state.",
        "As token_similarity, with the prompt's mean state subtracted first.",
        "Ethayarajh (2019), How Contextual are Contextualized Word Representations?, section 3.3.",
    ),
    _stream(
        "effective_rank",
        "effective rank",
        "exp of the entropy of the states' spectrum.",
        "exp(-sum of p ln p), p the singular values of the states over their sum.",
        "Roy and Vetterli (2007), The effective rank: a measure of effective dimensionality, definition 1.",
    ),
    _stream(
        "participation_ratio",
        "participation",
        "Number of directions that contain the states' variance.",
        "(sum of l)^2 / sum of l^2 of the eigenvalues l of the states' covariance.",
        "Gao et al. (2017), A theory of multineuronal dimensionality, dynamics and measurement.",
    ),
    _stream(
        "outlier_kurtosis",
        "kurtosis",
        "Kurtosis of the dimensions' sizes: 1 if all are alike.",
        "mean of s^2 over dimensions / (mean of s)^2, s the mean square of a dimension over tokens.",
        "He et al. (2024), Understanding and Minimising Outlier Features, equation 1.",
    ),
    _stream(
        "massive_activations",
        "massive",
        "Dimensions beyond 100 times the median magnitude, per token.",
        "Number of dimensions of a token's state whose magnitude is over 100 times the median of all.",
        "Sun et al. (2024), Massive Activations in Large Language Models, section 2, with another factor.",
        "per token",
    ),
    _stream(
        "final_norm_gain",
        "final norm gain",
        "Norm after the final norm over that before.",
        "|state after the final norm| / |state before it|.",
        parts=(),
    ),
    _stream(
        "final_norm_cosine",
        "final norm cosine",
        "Cosine of the states before and after the final norm.",
        "Cosine of the states after the final norm and before it.",
        values=_COSINE,
        parts=(),
    ),
    _stream(
        "attn_norm_gain",
        "attn norm gain",
        "Norm of attention's input over the stream's.",
        "|state after the norm before attention| / |stream|.",
    ),
    _stream(
        "mlp_norm_gain",
        "MLP norm gain",
        "Norm of the MLP's input over the stream's.",
        "|state after the norm before the MLP| / |stream|.",
    ),
    _stream(
        "lens_decided_layer",
        "decided at",
        "First layer from which the logit lens keeps the final prediction.",
        "Least layer from which on the lens's most likely token is the last layer's, mean over tokens.",
        _LENS,
        "layer",
        parts=(),
    ),
    _stream(
        "lens_agreement",
        "lens agreement",
        "Share of tokens for which the lens gives the final prediction.",
        "Share of tokens whose most likely token after a layer, by the lens, is the last layer's.",
        _LENS,
        "fraction",
    ),
    _stream(
        "lens_final_p",
        "lens p",
        "Lens probability of the final prediction.",
        "Probability, by the lens after a layer, of the last layer's most likely token.",
        _LENS,
        "fraction",
    ),
    _stream(
        "lens_entropy",
        "lens entropy",
        "Entropy of the lens distribution.",
        "-sum over the vocabulary of p ln p of the lens after a layer.",
        _LENS,
        "nats",
    ),
    _stream(
        "lens_kl",
        "lens KL",
        "KL(final distribution || lens distribution).",
        "Sum over the vocabulary of p_final (ln p_final - ln p_lens).",
        _LENS,
        "nats",
    ),
    _stream(
        "direct_embed",
        "direct, embed",
        "Contribution of the embedding to the predicted logit.",
        "Embedding through the final norm, as it scales this token, times the predicted token's unembedding.",
        _ELHAGE,
        "logits",
        parts=(),
    ),
    _stream(
        "direct_attn",
        "direct, attn",
        "Contribution of attention to the predicted logit.",
        "A layer's attention update through the final norm times the predicted token's unembedding.",
        _ELHAGE,
        "logits",
    ),
    _stream(
        "direct_mlp",
        "direct, MLP",
        "Contribution of the MLP to the predicted logit.",
        "A layer's MLP update through the final norm times the predicted token's unembedding.",
        _ELHAGE,
        "logits",
    ),
    _error("embed_relative_error", "embed error", "Relative error of the embeddings.", ()),
    _cosine("embed_cosine", "embed cosine", "Cosine with the reference's embeddings.", ()),
    _error(
        "resid_relative_error",
        "resid error",
        "Norm of the difference from the reference's residual stream, over its norm.",
        ("layer", "prompt"),
        Column(rank=10),
    ),
    _cosine("resid_cosine", "resid cosine", "Cosine with the reference's residual stream."),
    _error("resid_mid_relative_error", "mid error", "Relative error between attention and MLP."),
    _cosine("resid_mid_cosine", "mid cosine", "Cosine between attention and MLP."),
    _error("attn_out_relative_error", "attn error", "Relative error of attention's update."),
    _cosine("attn_out_cosine", "attn cosine", "Cosine with the reference's attention update."),
    _error("mlp_out_relative_error", "MLP error", "Relative error of the MLP's update."),
    _cosine("mlp_out_cosine", "MLP cosine", "Cosine with the reference's MLP update."),
    _error("final_relative_error", "final error", "Relative error after the final norm.", ("prompt",)),
    _cosine("final_cosine", "final cosine", "Cosine after the final norm.", ("prompt",)),
    Metric(
        name="resid_cka",
        title="CKA",
        better="higher",
        meaning="Linear CKA of the residual streams, over tokens of all prompts.",
        definition="|A'B|^2 / (|A'A| |B'B|), Frobenius norms, columns of A and B centred; error by jackknife.",
        source="Kornblith et al. (2019), Similarity of Neural Network Representations Revisited, linear CKA.",
        estimated="prompts",
        values=(0.0, 1.0),
        parts=_BY_LAYER,
        gate=GatedBy("layers", "test_representations_stay_alike"),
    ),
    Metric(
        name="error_amplification",
        title="amplification",
        better="lower",
        meaning="Relative error after a block over that before it.",
        definition="Sum of relative errors after a block / sum of those before it, over tokens.",
        source="This harness.",
        estimated="prompts",
        values=(0.0, math.inf),
        parts=_BY_LAYER,
        gate=GatedBy("layers", "test_which_layers_amplify_errors"),
    ),
    _stream(
        "layer_importance",
        "importance",
        "Rise of the loss on the prompts with a block skipped.",
        "mean of nll(block skipped) - nll over tokens.",
        "Gromov et al. (2024), The Unreasonable Ineffectiveness of the Deeper Layers, of single blocks.",
        "nats",
    ),
    _stream(
        "layer_kl_left",
        "KL left",
        "KL left with the reference's stream put in after a layer.",
        "Sum of KL with the reference's residual stream put in after a layer / sum of KL without, over tokens.",
        _PATCHING,
        "fraction",
        (0.0, math.inf),
    ),
    _stream(
        "embed_kl_left",
        "KL left, embed",
        "KL left with the reference's embeddings put in.",
        "Sum of KL with the reference's embeddings put in / sum of KL without, over tokens.",
        _PATCHING,
        "fraction",
        (0.0, math.inf),
        (),
    ),
)
