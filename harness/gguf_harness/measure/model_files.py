"""Models of a session on disk: validated, hashed, quantized on request, and checked to stay unchanged."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.engine.worker_tasks import quantize_task
from gguf_harness.errors import ModelError
from gguf_harness.inputs.adapters import check_fits
from gguf_harness.inputs.models import load_info, twins
from gguf_harness.inputs.sources import ModelSource
from gguf_harness.inputs.subjects import Model, Subject
from gguf_harness.measure.measurement import Files, Job, Measurement, as_json
from gguf_harness.store.file_hashes import FileState, file_states, hash_files

if TYPE_CHECKING:
    from gguf_harness.engine.settings import Adapter
    from gguf_harness.engine.worker_context import WorkerContext
    from gguf_harness.inputs.ladder import PlannedModel, PlannedSubject
    from gguf_harness.measure.llama_cpp import LlamaCpp
    from gguf_harness.measure.measuring import Measuring
    from gguf_harness.store.cache import Entry

__all__ = ["ModelFiles"]


def _quantize(
    context: WorkerContext,
    files: Sequence[Path],
    destination: Path,
    quant: str,
    threads: int,
    imatrix: Path | None,
    cache: Path,
) -> dict[str, str]:
    """Quantize a model and return the hash of the result."""
    quantize_task(context, files, destination, quant, threads, imatrix)
    return {"sha256": hash_files([destination], cache)}


_QUANTIZED: Final = Measurement(
    "models/quantized", 2, _quantize, "tensors", as_json(dict, dict), runs="in its own worker", counted=False
)


class ModelFiles:
    """The models of a session."""

    def __init__(self, core: Measuring, llama_cpp: LlamaCpp) -> None:
        self._core = core
        self._llama_cpp = llama_cpp
        self._states: dict[tuple[Path, ...], tuple[FileState | None, ...]] = {}
        self._loaded: dict[str, Model] = {}
        self._used: set[str] = set()

    def subject(self, planned: PlannedSubject) -> Subject:
        """A subject whose model and adapters are on disk; see `Core.subject`."""
        settings = planned.settings(self._core.options.session_settings)
        subject = Subject(self.model(planned.model), settings, planned.variant)
        self.check_adapters(subject)
        for adapter in subject.adapters:
            key = ("adapter fits", adapter.sha256, subject.model.name)
            self._core.once(key, functools.partial(check_fits, adapter, subject.info))
        return subject

    def model(self, planned: PlannedModel) -> Model:
        """A valid model on disk, quantized first if requested.

        Raises:
            ModelError: a file changed since it was hashed.
        """
        loaded = self._loaded[planned.name] = self._core.once(("model", planned.name), lambda: self._load(planned))
        self.check_unchanged(loaded)
        return loaded

    def _load(self, planned: PlannedModel) -> Model:
        if planned.source is not None:
            model = self._read(planned.name, planned.source)
        if planned.base is not None:
            model = self.model(planned.base)
        if planned.quant is not None:
            model = self._quantize(planned.name, model, planned.quant, with_imatrix=planned.base is not None)
        return Model(planned.name, replace(model.info, name=planned.name), model.sha256)

    def _read(self, name: str, source: ModelSource) -> Model:
        """Facts and hash of files, from the same bytes."""
        before = file_states(source.files)
        info = load_info(source)
        with self._core.progress.task(f"hashing {name}", "MB") as show:
            sha256 = hash_files(source.files, self._core.options.cache, show)
        if file_states(source.files) != before:
            raise ModelError(
                f"{name}: its file changed while it was being read.", "Run again when no other process writes to it."
            )
        self._states[source.files] = before
        return Model(name, info, sha256)

    def _quantize(self, name: str, source: Model, quant: str, *, with_imatrix: bool) -> Model:
        """The quantized model; made again if its content in the cache has changed."""
        options = self._core.options
        imatrix = options.imatrix if with_imatrix else None
        imatrix_state = file_states([imatrix] if imatrix else [])

        def made(folder: Path) -> ModelSource:
            # Not the model's name, which may be too long for a file name.
            return ModelSource(name, (folder / f"{quant}.gguf",), quant)

        def is_there(folder: Path, value: dict[str, Any]) -> bool:
            try:
                return bool(self._read(name, made(folder)).sha256 == value["sha256"])
            except ModelError:
                return False

        def prepare(entry: Entry) -> None:
            entry.remove()
            # Few are larger than their source; any missing room is made when the entry is stored.
            self._core.cache.make_room(source.info.bytes, entry)

        def check() -> None:
            self._check_files(source)
            if imatrix and file_states([imatrix]) != imatrix_state:
                raise ModelError(f"{imatrix.name} changed while {name} was quantized with it.", "Run again.")

        key = {
            "source": source.sha256,
            "quant": quant,
            "imatrix": hash_files([imatrix], options.cache) if imatrix else None,
            "engine": self._llama_cpp.key,
        }
        job = Job(
            _QUANTIZED,
            f"quantizing {name}",
            key,
            lambda entry: (source.files, made(entry.folder).files[0], quant, options.threads, imatrix, options.cache),
            files=Files("file", is_there),
            prepare=prepare,
            check=check,
            about=replace(source, name=name),
        )
        self._core.measure(job)
        return self._read(name, made(self._core.entry(job).folder))

    def check_unchanged(self, *models: Model) -> None:
        """Refuse results if files are no longer as hashed: they would be stored under a wrong key.

        Raises:
            ModelError: names the model and the file; from then on everything that needs the model fails with it.
        """
        for model in models:
            try:
                self._check_files(model)
            except ModelError as error:
                self._core.fail(("model", model.name), error)
                raise

    def check_adapters(self, subject: Subject) -> None:
        """The same for the adapters of a subject. The model alone can still be measured.

        Raises:
            ModelError: names the adapter.
        """
        for adapter in subject.adapters:
            # Hashed before this session knew of it: no state of its file is trusted yet.
            self._states.setdefault(adapter.files, (None,))
            self._check_files(adapter)

    def _check_files(self, model: Model | Adapter) -> None:
        before, now = self._states.get(model.files), file_states(model.files)
        if before is None or before == now:
            return
        for file, old, new in zip(model.files, before, now, strict=True):
            if new is None:
                raise ModelError(
                    f"{model.name}: {file.name} has been missing since it was hashed.",
                    f"Put it back into {file.parent}.",
                )
            # A new name or new permissions change the state, but not the content.
            if old != new and hash_files(model.files, self._core.options.cache) != model.sha256:
                raise ModelError(
                    f"{model.name}: {file.name} changed while it was being measured.",
                    "Its results do not count. Run again when no other process writes to it.",
                )
        self._states[model.files] = now

    def bytes_of(self, name: str) -> int:
        """Size of a model's files; of a name that is none of a model, that of the largest so far."""
        sizes = {known: model.info.bytes for known, model in self._loaded.items()}
        return sizes.get(name, max(sizes.values(), default=0))

    def use(self, model: str) -> None:
        """Note that a worker is asked for a model."""
        self._used.add(model)

    def check_used(self) -> None:
        """`check_unchanged` of each model that a worker was asked for since this was last called."""
        used, self._used = self._used, set()
        self.check_unchanged(*(self._loaded[name] for name in used if name in self._loaded))

    def twin_warnings(self) -> list[str]:
        """Warnings about identical models among those on disk so far."""
        return twins([(model.info, model.sha256) for model in self._loaded.values()])
