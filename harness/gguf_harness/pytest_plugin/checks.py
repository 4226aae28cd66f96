"""Checks before anything is measured: what is certain to fail ends the session with one message."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from gguf_harness.errors import HarnessError, OptionError
from gguf_harness.gguf.header import read_header
from gguf_harness.gguf.types import NEEDS_IMATRIX
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.models import ModelInfo, load_info
from gguf_harness.judge.gates import load_gates
from gguf_harness.metrics.registry import metric_info
from gguf_harness.store.runs import prepare_folder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    import pytest

    from gguf_harness.inputs.ladder import Ladder
    from gguf_harness.inputs.options import Options
    from gguf_harness.pytest_plugin.state import State

__all__ = ["check_folders", "check_metrics", "check_options"]


def check_options(state: State, *, measures: bool) -> None:
    """Check everything that the command line names, possible downloads last.

    Args:
        state: of the session.
        measures: whether tests will run in this process or its children.

    Raises:
        HarnessError: the first mistake.
    """
    options = state.options
    if options.budget_s is not None:
        _check_alone(state)
    _ = state.prompts, state.partners, state.words
    load_gates(options.gates)
    _check_imatrix(options)
    on_hub = options.corpus == "wikitext2" or options.corpus.startswith("hf:")
    if not on_hub:
        load_corpus(options.corpus)
    if measures:
        check_folders(options)
    _check_places(options, state.ladder)
    if on_hub and measures:
        load_corpus(options.corpus)


def _check_alone(state: State) -> None:
    """Refuse a budget where not all is measured by one process."""
    several = {
        "pytest -n": getattr(state.config.option, "dist", "no") != "no",
        "--gguf-ray": state.options.ray is not None,
        "--gguf-shard": state.options.shard is not None,
    }
    if chosen := [name for name, given in several.items() if given]:
        raise OptionError(
            f"--gguf-budget plans the time of one process, and {chosen[0]} is for several.", "Leave out one of them."
        )


def check_folders(options: Options) -> None:
    """Create the folders for results and measurements.

    Raises:
        StoreError: one of them is not writable.
    """
    prepare_folder(options.results, "--gguf-results")
    prepare_folder(options.cache, "--gguf-cache")


def check_metrics(items: Iterable[pytest.Item]) -> None:
    """Check that `metric` marks name existing metrics.

    Raises:
        GateError: a mark does not name a metric; the message names the test.
    """
    for item in items:
        for mark in item.iter_markers("metric"):
            names: tuple[Any, ...] = (*mark.args, *mark.kwargs.values())
            if len(names) != 1 or not isinstance(names[0], str):
                raise OptionError(
                    f"{item.nodeid} has the mark metric({', '.join(map(repr, names))}).",
                    'Expected the name of one metric, such as metric("kld_mean").',
                )
            try:
                metric_info(names[0])
            except HarnessError as error:
                raise OptionError(f"{item.nodeid}, mark metric: {error.message}", error.hint) from None


def _check_imatrix(options: Options) -> None:
    if options.imatrix is not None:
        _check_is_imatrix(options.imatrix)
        return
    for quant in options.quants:
        if quant in NEEDS_IMATRIX:
            raise OptionError(
                f"--gguf-quants: {quant} needs an importance matrix, and none was given.",
                "Make one with llama-imatrix and pass it with --gguf-imatrix=FILE, or leave that type out.",
            )


def _check_is_imatrix(path: Path) -> None:
    hint = "Make one with llama-imatrix, in GGUF format; it also converts older ones (.dat)."
    try:
        names = [tensor.name for tensor in read_header(path).tensors]
    except HarnessError as error:
        raise OptionError(f"--gguf-imatrix={path}: {error.message}", hint) from None
    if not any(name.endswith(".in_sum2") for name in names):
        raise OptionError(f"--gguf-imatrix={path} contains no importance matrix.", hint)


def _check_places(options: Options, ladder: Ladder) -> None:
    """Refuse layers and heads that no model has; if only some models have them, tests of the others fail."""
    infos: list[ModelInfo] = []
    for model in ladder.subjects:
        if model.model.source is not None:
            with contextlib.suppress(HarnessError):  # its own tests report what is wrong with the file
                infos.append(load_info(model.model.source))
    asked = {"layer": options.layers, "head": options.heads}
    counts = {"layer": [info.n_layer for info in infos], "head": [info.n_head for info in infos]}
    for what, numbers in asked.items():
        known = [count for count in counts[what] if count]
        if numbers and known and len(known) == len(infos) and max(numbers) >= max(known):
            raise OptionError(
                f"--gguf-{what}s names {what} {max(numbers)}, and no model has more than {max(known)} {what}s.",
                f"They are counted from 0 to {max(known) - 1}.",
            )
