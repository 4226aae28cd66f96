"""LoRA adapters on disk: validated and hashed, so that subjects can be run with them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gguf_harness.engine.settings import Adapter
from gguf_harness.errors import ModelError, OptionError, visible
from gguf_harness.gguf.header import read_header
from gguf_harness.gguf.lora_files import EMBEDDINGS, LoraFile, read_lora
from gguf_harness.inputs.sources import TINY_FILE
from gguf_harness.store.file_hashes import hash_files

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo
    from gguf_harness.inputs.options import Options
    from gguf_harness.inputs.subject_values import AdapterSpec

__all__ = [
    "VOYAGE_FILE",
    "adapted_tensors",
    "check_fits",
    "find_adapters",
    "load_adapter",
    "open_adapters",
    "own_text",
    "why_not",
]

VOYAGE_FILE: Final = TINY_FILE.with_name("tiny-lora-voyage.gguf")
"""The bundled adapter of `tiny`; `fixtures/data/tiny-lora-voyage.md` describes it."""
_VOYAGE_TEXT: Final = TINY_FILE.with_name("voyage-held-out.txt")
_ALIASES: Final = {"voyage": VOYAGE_FILE}
_DEFAULT: Final = "default"
_OUTPUT: Final = "output.weight"


def find_adapters(options: Options, models: Sequence[ModelInfo]) -> list[tuple[Adapter, ...]]:
    """The adapters of --gguf-lora, each group applied together; without it those that come along with the models.

    Args:
        options: of the session.
        models: facts of the files that they are to be applied to.

    Raises:
        InvalidGGUF: a file is not valid.
        ModelError: a file is missing, no LoRA adapter, or fits none of the models.
        OptionError: one of a group twice; `default`, and nothing comes along with the models.
    """
    if not options.lora:
        return [(_bundled(options.cache),)] if _is_of_tiny(models) else []
    groups = []
    for specs in options.lora:
        group = tuple(_load(spec, options.cache, models) for spec in specs)
        refused = {model.name: why_not(group, model) for model in models}
        if models and all(refused.values()):
            raise next(error for error in refused.values() if error is not None)
        groups.append(group)
    return groups


def _load(spec: AdapterSpec, cache: Path | None, models: Sequence[ModelInfo]) -> Adapter:
    if spec.file == _DEFAULT:
        if not _is_of_tiny(models):
            raise OptionError(
                "No LoRA adapter comes along with these models, only with tiny, so there is no default.",
                "Give the path of an adapter that was trained on the model.",
            )
        return _bundled(cache, spec.scale)
    path = _ALIASES.get(spec.file, Path(spec.file))
    if not path.exists():
        raise ModelError(
            f"There is no LoRA adapter {visible(spec.file)!r}: no such file.",
            f"Give the path of one in GGUF, or a name: {', '.join((_DEFAULT, *_ALIASES))}.",
        )
    return load_adapter(path, cache, scale=spec.scale)


def _bundled(cache: Path | None, scale: float = 1.0) -> Adapter:
    """Tiny's adapter, whose weights a test checks: sessions that do not use it need not read them."""
    return Adapter(VOYAGE_FILE.stem, VOYAGE_FILE, hash_files([VOYAGE_FILE], cache), scale)


def _is_of_tiny(models: Sequence[ModelInfo]) -> bool:
    """Whether some model is `tiny` or of its family: of its vocabulary and its matrices."""
    if not VOYAGE_FILE.is_file() or not models:
        return False
    from gguf_harness.inputs.models import load_info
    from gguf_harness.inputs.sources import ModelSource

    tiny = load_info(ModelSource("tiny", (TINY_FILE,), "tiny"))
    return any((model.vocab_sha256, model.shape) == (tiny.vocab_sha256, tiny.shape) for model in models)


def why_not(adapters: Sequence[Adapter], model: ModelInfo) -> ModelError | None:
    """Why some adapter does not fit a model, as `check_fits` says it; None if all do."""
    try:
        for adapter in adapters:
            check_fits(adapter, model)
    except ModelError as error:
        return error
    return None


def own_text(options: Options, adapters: Sequence[Adapter]) -> Path | None:
    """The text that adapters are for: --gguf-lora-corpus, or the held-out part of what the bundled one learned.

    None if neither is known.
    """
    if options.lora_corpus is not None:
        return options.lora_corpus
    bundled = any(adapter.file == VOYAGE_FILE for adapter in adapters)
    return _VOYAGE_TEXT if bundled else None


def open_adapters(specs: Sequence[AdapterSpec], model: ModelInfo) -> tuple[Adapter, ...]:
    """Adapters to be applied to a model together, outside of a session: nothing is remembered.

    Raises:
        InvalidGGUF: a file is not valid.
        ModelError: a file is missing, no LoRA adapter, or does not fit the model.
        OptionError: `default`, and nothing comes along with the model.
    """
    adapters = tuple(_load(spec, None, [model]) for spec in specs)
    for adapter in adapters:
        check_fits(adapter, model)
    return adapters


def load_adapter(file: Path, cache: Path | None, *, scale: float = 1.0, name: str | None = None) -> Adapter:
    """Read, check and hash an adapter. Whether it fits a model, `check_fits` says.

    Args:
        file: in GGUF, as llama.cpp's convert_lora_to_gguf.py writes it.
        cache: folder that remembers hashes of large files; None to remember none.
        scale: how strongly to apply it.
        name: as it is to stand in names of subjects; that of the file without its ending if not given.

    Raises:
        InvalidGGUF: the file is not valid.
        ModelError: it is no LoRA adapter, one that llama.cpp cannot apply, or its weights are not finite.
        OptionError: the scale is not finite.
    """
    lora = read_lora(file)
    _require_finite(lora)
    return Adapter(visible(name or file.stem), file, hash_files([file], cache), scale)


def check_fits(adapter: Adapter, model: ModelInfo) -> None:
    """Check that an adapter was made for a model of this architecture and these matrices, before it is loaded.

    Args:
        adapter: what is to be applied.
        model: facts of the model, whose headers are read again for the shapes of its matrices.

    Raises:
        InvalidGGUF: a file is not valid any more.
        ModelError: it does not fit; the message names the first matrix that does not.
    """
    lora = read_lora(adapter.file)
    if lora.architecture != model.architecture:
        raise ModelError(
            f"The adapter {adapter.name} was made for the architecture {lora.architecture!r}, {model.name} is of"
            f" {model.architecture!r}.",
            "Give an adapter that was trained on this model.",
        )
    shapes = {tensor.name: tensor.shape for file in model.files for tensor in read_header(file).tensors}
    for pair in lora.pairs.values():
        shape = shapes.get(pair.name)
        if shape is None:
            close = difflib.get_close_matches(pair.name, shapes, n=1)
            raise ModelError(
                f"The adapter {adapter.name} changes {pair.name!r}, which {model.name} does not have"
                f"{f'; the closest name is {close[0]!r}' if close else ''}.",
                "Give an adapter that was trained on this model.",
            )
        if shape != pair.shape:
            raise ModelError(
                f"The adapter {adapter.name} changes a matrix {pair.name} of {list(pair.shape)}, that of {model.name}"
                f" is {list(shape)}.",
                "Give an adapter that was trained on this model, not on one of another size.",
            )
    if EMBEDDINGS in lora.pairs and _OUTPUT not in shapes:
        raise ModelError(
            f"The adapter {adapter.name} changes {EMBEDDINGS}, which is {model.name}'s output matrix too: llama.cpp"
            " aborts on such an adapter, since it applies it to both.",
            "Merge it into the model first, or train one that leaves the embeddings as they are.",
        )


def adapted_tensors(adapter: Adapter) -> frozenset[str]:
    """Names of the model's tensors that an adapter changes.

    Raises:
        InvalidGGUF: its file is not valid any more.
        ModelError: it is no adapter any more.
    """
    return frozenset(read_lora(adapter.file).pairs)


def _require_finite(lora: LoraFile) -> None:
    import numpy as np

    from gguf_harness.gguf.weights import Weights

    weights = Weights([lora.header.path])
    for pair in lora.pairs.values():
        for tensor in (pair.a, pair.b):
            bad = sum(int(np.count_nonzero(~np.isfinite(block))) for block in weights.blocks(tensor.name))
            if bad:
                raise ModelError(
                    f"{lora.header.path.name} is not a valid LoRA adapter: {bad} of {tensor.parameters} weights of"
                    f" {tensor.name} are not finite.",
                    "Such an adapter is broken for use as well; convert or train it again.",
                )
