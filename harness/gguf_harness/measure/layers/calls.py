"""Measurements of layers on prompts: one decode per subject serves all tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from gguf_harness.errors import HarnessError, ModelError, OptionError
from gguf_harness.measure.layers.patching import measure_importance, measure_interchange
from gguf_harness.measure.layers.states import LayersRequest
from gguf_harness.measure.layers.tasks import STATES_FOLDER, LayersResult, has_states, measure_layers
from gguf_harness.measure.measurement import ARRAYS, Files, Format, Job, Measurement
from gguf_harness.store.arrays import Arrays

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import PlannedSubject
    from gguf_harness.inputs.prompts import PromptSet
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core
    from gguf_harness.store.cache import Entry

__all__ = ["Layers"]

_RESULT: Final[Format[LayersResult]] = Format(
    lambda result: (result.facts, result.arrays), lambda facts, arrays: LayersResult(arrays, facts)
)
_ALONE: Final = Measurement("layers/alone", 3, measure_layers, "contexts", _RESULT)
_COMPARED: Final = Measurement("layers/compared", 3, measure_layers, "contexts", _RESULT)
_IMPORTANCE: Final = Measurement("layers/importance", 2, measure_importance, "layers", ARRAYS)
_INTERCHANGE: Final = Measurement("layers/interchange", 2, measure_interchange, "layers", ARRAYS)
_STATES: Final[Files[LayersResult]] = Files("states", lambda folder, result: has_states(folder, result.facts))

_SHOWN_TOKENS: Final = 40
_SHOWN_CHARACTERS: Final = 16


class Layers:
    """Hidden states, logit lens and patching of layers.

    Args:
        core: runs measurements.
        prompts: prompts to read.
        reference: the model on whose tokens candidates are measured; None if there is none.
        compared: whether there are candidates, which will need the reference's states.
    """

    def __init__(
        self, core: Core, prompts: PromptSet, reference: PlannedSubject | None = None, *, compared: bool = False
    ) -> None:
        self._core = core
        self._prompts = prompts
        self._reference = reference
        self._kept = compared

    def __call__(self, model: Subject) -> LayersResult:
        """Measure the layers of a subject; see `measure_layers`."""
        base = self._base(model)
        if base is not None:
            try:
                # Other tests compare; one decode gives both.
                return self.compare(model, base)
            except HarnessError:
                pass  # an error of the reference must not prevent measuring this model
        # The states are kept if a candidate may need them.
        keep = self._kept and self._reference is not None and model.name == self._reference.name
        return self._describe(model, self.alone(model, keep=keep), model)

    def compare(self, candidate: Subject, reference: Subject) -> LayersResult:
        """Like a call, plus the distance of a candidate's states from the reference's.

        Raises:
            ModelError: models of different shape.
        """
        own, other = ((each.info.n_layer, each.info.n_embd) for each in (candidate, reference))
        if own != other:
            raise ModelError(
                f"{candidate.name} has {own[0]} layers of width {own[1]}, its reference {reference.name} {other[0]} of"
                f" {other[1]}.",
                "Compare models of the same shape layer by layer.",
            )
        return self._describe(candidate, self.compared(candidate, reference), reference)

    def importance(self, model: Subject) -> Arrays:
        """Loss without each of the selected layers; see `measure_importance`."""
        base, chosen = self._base(model), self.selected(model)
        return self._core.measure(self._patched(_IMPORTANCE, "skipped", model, base, chosen))

    def interchange(self, candidate: Subject, reference: Subject) -> Arrays:
        """KL with the reference's stream put in after each of the selected layers; see `measure_interchange`."""
        self.compare(candidate, reference)
        return self.exchanged(candidate, reference, self.selected(candidate))

    def exchanged(self, candidate: Subject, reference: Subject, chosen: Sequence[int]) -> Arrays:
        """The same for given layers."""
        # The task checks whether both fit together.
        self.compared(candidate, reference)
        return self._core.measure(self._patched(_INTERCHANGE, "exchanged", candidate, reference, chosen))

    def selected(self, model: Subject) -> list[int]:
        """The layers of --gguf-layers, all by default."""
        n_layer, asked = model.info.n_layer or 0, self._core.options.layers
        beyond = [layer for layer in asked or () if layer >= n_layer]
        if beyond:
            raise OptionError(
                f"--gguf-layers names layer {beyond[0]}, {model.name} has {n_layer} layers.",
                f"Layers are 0 to {n_layer - 1}.",
            )
        return list(range(n_layer) if asked is None else asked)

    def alone(self, model: Subject, *, keep: bool) -> LayersResult:
        """A subject by itself; see `measure_layers`.

        Args:
            model: the subject.
            keep: keep its hidden states in the cache, for comparisons with candidates.
        """
        return self._core.measure(self._alone(model, keep=keep))

    def compared(self, model: Subject, reference: Subject) -> LayersResult:
        """Compare a candidate with its reference, on the reference's tokens; see `measure_layers`."""
        base_job = self._alone(reference, keep=True)
        base = self._core.entry(base_job)
        return self._core.measure(
            Job(
                _COMPARED,
                f"layers of {model.name}",
                self._key(model, base),
                lambda entry: (self._request(model, entry), base.folder, False),
                subjects=(model,),
                reads=(base_job,),
            )
        )

    def _alone(self, model: Subject, *, keep: bool) -> Job[LayersResult]:
        return Job(
            _ALONE,
            f"layers of {model.name}",
            self._key(model, None),
            lambda entry: (self._request(model, entry), None, keep),
            subjects=(model,),
            files=_STATES if keep else None,
        )

    def _patched(
        self, measurement: Measurement[Arrays], what: str, model: Subject, base: Subject | None, chosen: Sequence[int]
    ) -> Job[Arrays]:
        reads = None if base is None else self._alone(base, keep=True)
        base_entry = None if reads is None else self._core.entry(reads)
        folder = None if base_entry is None else base_entry.folder
        return Job(
            measurement,
            f"layers of {model.name}, {what}",
            self._key(model, base_entry) | {"layers": list(chosen)},
            lambda entry: (self._request(model, entry), folder, chosen),
            subjects=(model,),
            reads=() if reads is None else (reads,),
        )

    def _key(self, model: Subject, base: Entry | None) -> dict[str, Any]:
        about = {"prompts": self._prompts.sha256, "reference": None if base is None else base.digest}
        return self._core.key(model) | about

    def _request(self, model: Subject, entry: Entry) -> LayersRequest:
        return LayersRequest(
            model=model.name,
            files=model.files,
            settings=model.settings,
            prompts=self._prompts.prompts,
            folder=entry.folder / STATES_FOLDER,
            limit_bytes=self._core.entry_limit,
        )

    def _base(self, model: Subject) -> Subject | None:
        """The reference of a candidate, on whose tokens it is measured; None for the reference itself."""
        base = self._core.reference_of(model, self._reference)
        if base is None:
            return None
        try:
            self.alone(base, keep=True)
        except HarnessError:
            return None  # its own tests fail with this error
        return base if base.info.vocab_sha256 == model.info.vocab_sha256 else None

    def _describe(self, model: Subject, result: LayersResult, given_to: Subject) -> LayersResult:
        notes = self._core.notes
        self._core.note_prompts(self._prompts)
        notes.warn_of_prompts(given_to.name, list(result.facts["problems"].values()), len(self._prompts.prompts))
        notes.add_arrays(
            model.name,
            "layers",
            f"States of the first tokens of prompt {result.facts['prompts'][0]!r} by layer.",
            _drawn(result),
        )
        return result


def _drawn(result: LayersResult) -> Arrays:
    """Data for the chart of the first prompt: [layer, token], and the text of tokens."""
    arrays, pieces = result.arrays, result.facts["pieces"]
    part = slice(0, min(_SHOWN_TOKENS, int(arrays["starts"][1])))

    def text(tokens: NDArray[np.generic]) -> NDArray[np.str_]:
        # repr keeps a trailing zero, which NumPy strings would lose.
        cut = [pieces[str(token)][:_SHOWN_CHARACTERS] for token in tokens.ravel().tolist()]
        return np.array([repr(piece)[1:-1] for piece in cut]).reshape(tokens.shape)

    drawn: Arrays = {"text": text(arrays["tokens"][part])}
    for name in ("norm", "error_resid_post", "lens_p", "lens_final_p"):
        if name in arrays:
            drawn[name] = arrays[name][:, part].astype(np.float32)
    if "lens_top" in arrays:
        drawn["lens_text"] = text(arrays["lens_top"][:, part])
    return drawn
