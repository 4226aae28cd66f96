"""Which measurements the tests of the suites need, by test.

A unit test compares this with the suites: a test that is not here fails it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gguf_harness.errors import HarnessError
from gguf_harness.inputs.ladder import PlannedSubject, origin_of
from gguf_harness.inputs.models import check_comparable

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder

__all__ = ["MIXTURE", "NEEDS", "USES", "Asked", "Piece", "is_compared", "is_foreseen", "pieces_of", "plain_of"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A collected test.

    Attributes:
        suite: folder of its file.
        test: name of its function.
        subject: that it is about; None for one that is about none, or only the reference.
    """

    suite: str
    test: str
    subject: PlannedSubject | None


@dataclass(frozen=True, slots=True)
class Piece:
    """A measurement of a subject, which is made once however many tests need it.

    Attributes:
        name: in `efforts.EFFORTS`, and of its jobs.
        subject: that it is about.
        suite: of the first test that needs it.
    """

    name: str
    subject: PlannedSubject
    suite: str


# Of what a test needs: the role of a subject, see `_ROLES`, and the measurement.
_PASSES: Final = ("R passes/reference", "C passes/candidate")
_TEXTS: Final = ("R texts/generations", "C texts/generations", "C texts/scores", "C texts/compared")
_SPEED: Final = ("R speed/speed-alone", "C speed/speed-beside")
_ATTENTION: Final = ("R attention/observed", "C attention/compared")
_SCREEN: Final = ("R heads/screen",)
_SWEEPS: Final = (*_SCREEN, "R heads/sweep", "C heads/sweep")
_LAYERS: Final = ("R layers/alone", "C layers/compared")
_SPACES: Final = ("R embeddings/space", "C embeddings/space")
_DEPTH: Final = (
    "P passes/reference-depth", "RP passes/reference-depth", "SO passes/candidate-depth", "SC passes/joint",
)  # fmt: skip
_OWN: Final = ("RS lora/effect-own", "SO lora/effect-own", "SC lora/retained-own")
_ELSEWHERE: Final = ("RS lora/effect-corpus", "SO lora/effect-corpus", "SC lora/retained-corpus")

NEEDS: Final[Mapping[str, Mapping[str, Sequence[str]]]] = {
    "quant": {
        "test_noise_floor": ("R passes/reference", "R passes/floor"),
        "test_distribution_stays_close_to_reference": _PASSES,
        "test_most_likely_token_stays_the_same": _PASSES,
        "test_most_likely_token_stays_among_the_first": _PASSES,
        "test_probability_of_the_correct_token": _PASSES,
        "test_perplexity": _PASSES,
        "test_perplexity_stays_close_to_reference": _PASSES,
        "test_no_worse_than_the_baseline": _PASSES,
        "test_text_of_a_prompt": _TEXTS,
        "test_texts_stay_close_to_reference": _TEXTS,
        "test_prompt_processing": _SPEED,
        "test_generation": _SPEED,
        "test_load_time": _SPEED,
        "test_speed_beside_the_reference": _SPEED,
        "test_memory": _SPEED,
        "test_serving": ("S speed/served",),
        "test_a_single_stream_agrees_with_generation": (*_SPEED, "S speed/served"),
        "test_file": (),
    },
    "attention": {
        "test_attention_of_a_prompt": _ATTENTION,
        "test_attention_stays_close_to_reference": _ATTENTION,
        "test_each_head_stays_close_to_reference": _ATTENTION,
        "test_queries_keys_and_values_stay_close_to_reference": _ATTENTION,
    },
    "heads": {
        "test_behaviour": _ATTENTION,
        "test_redundancy": _ATTENTION,
        "test_clusters": _ATTENTION,
        "test_heads_keep_their_behaviour": _ATTENTION,
        "test_importance_of_heads": (*_SCREEN, "S heads/sweep"),
        "test_the_same_heads_matter": _SWEEPS,
        "test_screen_of_heads": (*_SCREEN, "R heads/sweep"),
        "test_interchange_of_heads": (*_SCREEN, "C heads/interchange"),
        "test_heads_that_can_go": (*_SCREEN, "R heads/sweep", "R heads/removal"),
        "test_heads_that_can_go_of_a_candidate": (*_SCREEN, "R heads/sweep", "R heads/removal", "C heads/path"),
    },
    "layers": {
        "test_logit_lens": _LAYERS,
        "test_direct_logit_attribution": _LAYERS,
        "test_layer_importance": ("R layers/alone", "S layers/importance"),
        "test_which_layers_cause_the_loss": (*_LAYERS, "C layers/interchange"),
        "test_states_stay_close_to_reference": _LAYERS,
        "test_representations_stay_alike": _LAYERS,
        "test_which_layers_amplify_errors": _LAYERS,
        "test_states_of_a_prompt": _LAYERS,
        "test_groups_of_tensors": ("R passes/reference", "C passes/mixture"),
        "test_residual_stream": _LAYERS,
        "test_what_blocks_add": _LAYERS,
        "test_shape_of_states": _LAYERS,
        "test_norms": _LAYERS,
        "test_weights_stay_close_to_reference": ("C weights/errors",),
    },
    "embeddings": {
        "test_neighbours_stay": _SPACES,
        "test_space_stays": (*_SPACES, "C embeddings/aligned"),
        "test_contexts_stay": ("R embeddings/contexts", "C embeddings/contexts"),
        "test_words_stay": _SPACES,
        "test_token_embeddings": ("S embeddings/space",),
        "test_word_groups": ("S embeddings/space", "R embeddings/space"),
        "test_analogies": ("S embeddings/space", "R embeddings/space"),
    },
    "kv": {
        "test_bytes_per_token": ("S kv/bytes", "P kv/bytes"),
        "test_cache_keeps_the_distribution": _DEPTH,
        "test_cost_of_weights_and_cache_together": (*_DEPTH, "PC passes/candidate-depth", "RS passes/candidate-depth"),
        "test_divergence_by_position": _DEPTH,
        "test_loss_does_not_grow_with_depth": _DEPTH,
        "test_keys_and_values": ("S kv/compared",),
        "test_attention_with_the_cache": ("S kv/compared",),
        "test_layers_of_the_cache": ("S kv/layers",),
        "test_predicted_layers": ("S kv/compared", "S kv/layers"),
        "test_facts_are_found": ("S kv/needles",),
        "test_facts_are_found_with_this_cache": ("S kv/needles", "P kv/needles"),
        "test_speed_at_depth": ("S speed/depth-alone",),
        "test_speed_at_depth_with_this_cache": ("S speed/depth-beside",),
        "test_texts_stay_the_same": ("S texts/generations", "P texts/generations"),
    },
    "lora": {
        "test_effect_on_its_own_text": _OWN,
        "test_effect_elsewhere": _ELSEWHERE,
        "test_tokens_that_changed_most": (*_OWN, *_ELSEWHERE),
        "test_layers_that_moved": ("P layers/alone", "S layers/compared"),
        "test_heads_that_moved": ("P attention/observed-few", "S attention/compared-few"),
        "test_adapter_survives_quantization": _OWN,
        "test_merging_before_quantizing": (*_OWN, "SC lora/merged"),
        "test_scale_sweep": ("S lora/sweep",),
        "test_adapters_together": (*_OWN, *_ELSEWHERE, "1 lora/effect-own", "1 lora/effect-corpus"),
        "test_changes_of_matrices": ("S lora/changes",),
        "test_texts_with_the_adapter": (
            "P texts/generations",
            "S texts/generations",
            "S texts/scores",
            "S texts/compared",
        ),
    },
}
"""By suite and test."""

USES: Final[Mapping[str, Sequence[str]]] = {
    "passes/": ("chunks",),
    "heads/": ("head_windows", "head_limit"),
    "texts/": ("prompts",),
    "attention/": ("prompts",),
    "layers/": ("prompts",),
    "embeddings/contexts": ("prompts",),
    "passes/mixture": ("sensitivity",),
    "kv/compared": ("prompts",),
    "kv/layers": ("prompts",),
    "lora/effect": ("chunks",),
    "lora/retained": ("chunks",),
    "lora/merged": ("chunks",),
    "lora/sweep": ("chunks",),
}
"""What names of measurements that begin so depend on, of that which a budget reduces."""

MIXTURE: Final = "passes/mixture"


def is_foreseen(asked: Asked) -> bool:
    """Whether it is known what a test needs."""
    return asked.test in NEEDS.get(asked.suite, {})


def pieces_of(
    asked: Iterable[Asked], ladder: Ladder, mixed: Collection[PlannedSubject]
) -> dict[Asked, tuple[Piece, ...]]:
    """What each test needs, the quantization of its subjects first.

    Args:
        asked: the tests, in their order.
        ladder: of the session.
        mixed: candidates of which mixtures are decoded (--gguf-sensitivity).
    """
    first: dict[tuple[str, PlannedSubject], Piece] = {}
    needed: dict[Asked, tuple[Piece, ...]] = {}
    for each in asked:
        found = []
        for name, subject in _needs(each, ladder):
            if name == MIXTURE and subject not in mixed:
                continue
            if subject.model.quant is not None:
                made = ("models/quantized", PlannedSubject(subject.model))
                found.append(first.setdefault(made, Piece(*made, each.suite)))
            found.append(first.setdefault((name, subject), Piece(name, subject, each.suite)))
        needed[each] = tuple(dict.fromkeys(found))
    return needed


def _needs(asked: Asked, ladder: Ladder) -> list[tuple[str, PlannedSubject]]:
    subject = asked.subject or ladder.reference
    found = []
    for need in NEEDS.get(asked.suite, {}).get(asked.test, ()):
        role, _, name = need.partition(" ")
        found += [(name, each) for each in _ROLES[role](subject, ladder)] if subject is not None else []
    return found


# -- roles ------------------------------------------------------------------------------------------------------------


def plain_of(subject: PlannedSubject, ladder: Ladder) -> PlannedSubject:
    """The same file as others of it are compared with: without adapters, or with a full cache."""
    return replace(subject, adapters=()) if subject.adapters else ladder.with_full_cache(subject)


def is_compared(subject: PlannedSubject, ladder: Ladder) -> bool:
    """Whether it is of another file than the reference, and one that can be compared with it."""
    reference = ladder.reference
    if reference is None or subject.model == reference.model:
        return False
    own, other = (ladder.infos.get(origin_of(each.model).name) for each in (subject, reference))
    if own is None or other is None:
        return False  # its own tests say why
    try:
        check_comparable(own, other, asked_for=ladder.asked_for)
    except HarnessError:
        return False
    return True


def _reference_like(subject: PlannedSubject, like: PlannedSubject, ladder: Ladder) -> list[PlannedSubject]:
    """The reference's file, run like another subject; for one that is compared with it."""
    if ladder.reference is None or not is_compared(subject, ladder):
        return []
    return [replace(like, model=ladder.reference.model)]


_Role = Callable[[PlannedSubject, "Ladder"], Sequence[PlannedSubject]]
_ROLES: Final[Mapping[str, _Role]] = {
    "R": lambda _, ladder: () if ladder.reference is None else (ladder.reference,),
    "S": lambda subject, _: (subject,),
    "C": lambda subject, ladder: () if subject == ladder.reference else (subject,),
    "P": lambda subject, ladder: (plain_of(subject, ladder),),
    "SO": lambda subject, ladder: () if is_compared(subject, ladder) else (subject,),
    "SC": lambda subject, ladder: (subject,) if is_compared(subject, ladder) else (),
    "PC": lambda subject, ladder: (plain_of(subject, ladder),) if is_compared(subject, ladder) else (),
    "RS": lambda subject, ladder: _reference_like(subject, subject, ladder),
    "RP": lambda subject, ladder: _reference_like(subject, plain_of(subject, ladder), ladder),
    "1": lambda subject, _: [
        replace(subject, adapters=(one,)) for one in subject.adapters if len(subject.adapters) > 1
    ],
}
"""R is the reference; S the subject that the test is about, be it the reference or a candidate; C the same, where it is
no reference; P the same file as it is run plainly. Of suites with variants: SO is the subject, where it is of the
reference's file; SC and PC are subject and plain file, where they are of another one, which is compared with the
reference; RS and RP then are the reference, run like these. 1 is each of several adapters alone."""
