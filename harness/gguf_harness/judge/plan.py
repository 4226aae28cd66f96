"""The plan of a run: what its suites are to decide of each model. A verdict is over the plan, not over what happened.

A limit that is set and never held against anything must not look like one that was kept. So the plan is made of what a
suite can decide and of the limits that are set, whatever is deselected, interrupted or skipped later.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.judge.gates import Gate

__all__ = [
    "COMPARING_TEST",
    "GATED",
    "GatedTest",
    "homeless",
    "of_other_suites",
    "plan_comparisons",
    "plan_gates",
    "suite_of",
]

COMPARING_TEST: Final = "test_no_worse_than_the_baseline"
_COMPARING_SUITE: Final = "quant"


@dataclass(frozen=True, slots=True)
class GatedTest:
    """What a test decides where limits are set.

    Attributes:
        metrics: those of its estimates that a limit can be set for.
        any_model: it runs for the reference too, which is held against absolute limits where it is the only model.
    """

    metrics: frozenset[str]
    any_model: bool = False


def _of_candidates(*metrics: str) -> GatedTest:
    return GatedTest(frozenset(metrics))


def _of_models(*metrics: str) -> GatedTest:
    return GatedTest(frozenset(metrics), any_model=True)


GATED: Final[Mapping[str, Mapping[str, GatedTest]]] = {
    "quant": {
        "test_file": _of_models("file_bytes", "bits_per_weight"),
        "test_perplexity": _of_models("ppl"),
        "test_perplexity_stays_close_to_reference": _of_candidates(
            "ppl_ratio", "ppl_difference", "ln_ppl_ratio", "ln_ppl_correlation"
        ),
        "test_distribution_stays_close_to_reference": _of_candidates(
            "kld_mean", "kld_reverse_mean", "kld_min", "kld_max", "kld_median", "kld_p0_1", "kld_p1", "kld_p5",
            "kld_p10", "kld_p90", "kld_p95", "kld_p99", "kld_p99_9",
        ),
        "test_most_likely_token_stays_the_same": _of_candidates("same_top"),
        "test_probability_of_the_correct_token": _of_candidates("delta_p_rms", "delta_p_mean"),
        "test_texts_stay_close_to_reference": _of_candidates(
            "bleu", "chrf", "rouge_l", "edit_similarity", "exact_prefix_tokens", "text_ppl_under_reference",
            "divergence_probability_gap",
        ),
        "test_prompt_processing": _of_models("pp_tokens_per_s"),
        "test_generation": _of_models("tg_tokens_per_s"),
        "test_load_time": _of_models("load_s"),
        "test_memory": _of_models("peak_memory_bytes", "weights_bytes", "kv_cache_bytes", "compute_bytes"),
        "test_speed_beside_the_reference": _of_candidates("pp_speed_ratio", "tg_speed_ratio", "load_ratio"),
        "test_a_single_stream_agrees_with_generation": _of_models("served_single_tokens_per_s"),
        "test_serving": _of_models(
            "served_tokens_per_s", "served_ttft_p50_s", "served_ttft_p99_s", "served_itl_p50_s", "served_itl_p99_s"
        ),
    },
    "attention": {
        "test_attention_stays_close_to_reference": _of_candidates(
            "attn_cosine", "attn_cosine_worst_head", "attn_jsd", "attn_top_changed", "attn_total_variation"
        ),
        "test_queries_keys_and_values_stay_close_to_reference": _of_candidates(
            "attn_scores_error", "attn_q_error", "attn_k_error", "attn_v_error", "attn_q_cka", "attn_k_cka",
            "attn_v_cka",
        ),
    },
    "heads": {
        "test_heads_keep_their_behaviour": _of_candidates("head_kind_kept", "head_matched_to_itself"),
        "test_the_same_heads_matter": _of_candidates("head_importance_rank_correlation", "head_top_overlap"),
    },
    "layers": {
        "test_states_stay_close_to_reference": _of_candidates(
            "resid_relative_error", "resid_cosine", "resid_mid_relative_error", "resid_mid_cosine",
            "attn_out_relative_error", "attn_out_cosine", "mlp_out_relative_error", "mlp_out_cosine",
            "embed_relative_error", "embed_cosine", "final_relative_error", "final_cosine",
        ),
        "test_representations_stay_alike": _of_candidates("resid_cka"),
        "test_which_layers_amplify_errors": _of_candidates("error_amplification"),
        "test_weights_stay_close_to_reference": _of_candidates(
            "weight_relative_rmse", "weight_max_error", "weight_cosine", "weight_snr_db"
        ),
        "test_groups_of_tensors": _of_candidates(
            "tensor_group_kld", "tensor_restored_gain", "tensor_restored_gain_per_mb"
        ),
    },
    "embeddings": {
        "test_neighbours_stay": _of_candidates("neighbour_recall", "similarity_rank_correlation"),
        "test_space_stays": _of_candidates("procrustes_error", "embedding_cka"),
        "test_contexts_stay": _of_candidates("contextual_cosine", "last_token_cosine", "pooled_cosine"),
        "test_words_stay": _of_candidates(
            "word_neighbour_recall", "word_rank_correlation", "word_procrustes_error", "word_cka"
        ),
        "test_word_groups": _of_models("word_silhouette", "word_purity"),
        "test_analogies": _of_models("analogy_mrr", "analogy_accuracy"),
    },
}  # fmt: skip
"""By suite and test. The fixture `gate` refuses what is not here, and a session ends with a failure where a test ran
and did not decide what is: the table and the tests cannot part."""


@cache
def suite_of(path: Path) -> str | None:
    """Name of the suite that a test file belongs to, of those that come along: in a checkout or installed."""
    installed = Path(__file__).parent.parent / "suites"
    # In a checkout that is a link to the folder at the top, which people name.
    for place in (installed, installed.resolve()):
        if path.is_relative_to(place) and path != place:
            return path.relative_to(place).parts[0]
    return None


def plan_gates(suites: Iterable[str], ladder: Ladder, gates: Mapping[str, Gate]) -> list[dict[str, Any]]:
    """What the suites are to decide: `model`, `suite`, `test` and `metric` of each gate.

    Args:
        suites: those that take part in the session.
        ladder: its models.
        gates: limits by metric.
    """
    planned = []
    for suite in sorted(suites):
        for test, gated in GATED.get(suite, {}).items():
            for metric in (metric for metric in gates if metric in gated.metrics):
                models = [model.name for model in ladder.candidates]
                if not models and ladder.reference and gated.any_model and gates[metric].limit is not None:
                    models = [ladder.reference.name]
                planned += [{"model": model, "suite": suite, "test": test, "metric": metric} for model in models]
    return planned


def plan_comparisons(suites: Iterable[str], ladder: Ladder) -> list[dict[str, Any]]:
    """What --gguf-baseline is to compare: like `plan_gates`."""
    from gguf_harness.metrics.windows import COMPARED

    if _COMPARING_SUITE not in suites:
        return []
    return [
        {"model": model.name, "suite": _COMPARING_SUITE, "test": COMPARING_TEST, "metric": metric}
        for model in ladder.candidates
        for metric in COMPARED
    ]


def homeless(gates: Iterable[str], decided: Iterable[str]) -> list[str]:
    """Metrics with a limit that no test of any suite holds against anything, and that no other test has decided."""
    at_home = {metric for tests in GATED.values() for gated in tests.values() for metric in gated.metrics}
    return sorted(set(gates) - at_home - set(decided))


def of_other_suites(gates: Iterable[str], suites: Iterable[str], decided: Iterable[str]) -> str:
    """A sentence on the limits that only suites hold which take no part in the session; "" where there are none.

    One file of limits may be for several sessions, so that this is no failure.

    Args:
        gates: metrics with a limit in a person's file.
        suites: those that take part.
        decided: metrics that were held against theirs.
    """
    homes = {metric: suite for suite, tests in GATED.items() for gated in tests.values() for metric in gated.metrics}
    here = {metric for suite in suites for gated in GATED.get(suite, {}).values() for metric in gated.metrics}
    left: dict[str, list[str]] = {}
    for metric in sorted(set(gates) & set(homes) - here - set(decided)):
        left.setdefault(homes[metric], []).append(metric)
    told = "; ".join(f"{', '.join(metrics)} (suites/{suite})" for suite, metrics in left.items())
    return f"--gguf-gates has limits that no suite of this session holds: {told}" if told else ""
