"""Which measurements the tests of the suites need, by test.

A unit test compares this with the suites: a test that is not here, and not in `UNFORESEEN`, fails it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gguf_harness.inputs.ladder import PlannedSubject

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder

__all__ = ["MIXTURE", "NEEDS", "UNFORESEEN", "USES", "Asked", "Piece", "is_foreseen", "pieces_of"]


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
        name: in `efforts.EFFORTS`.
        subject: that it is about.
        suite: of the first test that needs it.
    """

    name: str
    subject: PlannedSubject
    suite: str

    @property
    def kind(self) -> str:
        """Its kind of measurement, as jobs name it."""
        return KINDS.get(self.name, self.name)


KINDS: Final[Mapping[str, str]] = {"speed/alone": "speed/speed", "speed/beside": "speed/speed"}

# Of what a test needs: R for the reference, C for a candidate that the test is about, S for the subject that it is
# about, be it the reference or a candidate.
_PASSES: Final = ("R passes/reference", "C passes/candidate")
_TEXTS: Final = ("R texts/generations", "C texts/generations", "C texts/scores", "C texts/compared")
_SPEED: Final = ("R speed/alone", "C speed/beside")
_ATTENTION: Final = ("R attention/observed", "C attention/compared")
_SCREEN: Final = ("R heads/screen",)
_SWEEPS: Final = (*_SCREEN, "R heads/sweep", "C heads/sweep")
_LAYERS: Final = ("R layers/alone", "C layers/compared")
_SPACES: Final = ("R embeddings/space", "C embeddings/space")

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
}
"""What names of measurements that begin so depend on, of that which a budget reduces."""

UNFORESEEN: Final = frozenset({"kv", "lora"})
"""Suites whose duration is not forecast."""

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
    reference = ladder.reference
    subject = asked.subject or reference
    found = []
    for need in NEEDS.get(asked.suite, {}).get(asked.test, ()):
        role, _, name = need.partition(" ")
        of = {"R": reference, "S": subject, "C": None if subject == reference else subject}[role]
        if of is not None:
            found.append((name, of))
    return found
