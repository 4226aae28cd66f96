"""Which runs take part in a history, and what is asked of them."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from gguf_harness.errors import OptionError, StoreError, visible
from gguf_harness.inputs.pairing import some_names
from gguf_harness.judge.history.families import StoredContent, build_history
from gguf_harness.judge.history.history_records import History
from gguf_harness.judge.history.identity import family_keys, roles_of
from gguf_harness.metrics.records import WHOLE, Place
from gguf_harness.metrics.registry import Metric, close_to, metrics_of_run
from gguf_harness.store.runs import find_run, load_run

__all__ = ["ALL", "read_history"]

ALL: Final = "all"


def read_history(
    results: Path, runs: Sequence[str] = (), *, models: Sequence[str] = (), metrics: Sequence[str] = ()
) -> History:
    """Read runs, and build their history.

    Args:
        results: folder of the runs, as --gguf-results.
        runs: each a run.json, a run's folder, its id or the start of it, or `last`; empty for all in `results`, of
            which those that cannot be read are left out.
        models: roles or names of subjects, with `*` and `?`, to be shown; empty for all.
        metrics: names of metrics; empty for the main ones, `all` for all.

    Raises:
        StoreError: there are no runs; one that was named is not there or cannot be read; or none has estimates.
        OptionError: no run has a subject or a metric of that name.
    """
    files = [find_run(spec, results) for spec in runs] or sorted((results / "runs").glob("*/run.json"))
    if not files:
        raise StoreError(
            f"There are no runs in {results / 'runs'}.", "Run suites first, or name another folder with --gguf-results."
        )
    read, left_out = _read(files, keep_going=not runs)
    if not any(run.content["estimates"] for run in read):
        told = "".join(f"\n  {line}" for line in left_out)
        raise StoreError(f"Nothing was measured in {len(files)} runs.{told}", "Give runs that measured something.")
    return build_history(
        read, metrics=_metrics(read, metrics), models=_subjects(read, models) if models else None, left_out=left_out
    )


def _read(files: Sequence[Path], *, keep_going: bool) -> tuple[list[StoredContent], list[str]]:
    read, left_out = dict[Path, StoredContent](), []
    for file in files:
        try:
            read.setdefault(file.resolve(), StoredContent(file, load_run(file)))
        except StoreError as error:
            if not keep_going:
                raise
            left_out.append(visible(f"{file.parent.name}: {error.message.removeprefix(f'{file} ')}"))
    return list(read.values()), left_out


def _metrics(runs: Sequence[StoredContent], asked: Sequence[str]) -> list[str] | None:
    """The metrics to show; None for all."""
    if ALL in asked:
        return None
    known: dict[str, Metric] = {}
    for run in runs:
        known |= metrics_of_run(run.content)
    measured = {
        row["metric"] for run in runs for row in run.content["estimates"] if Place.of(row) == WHOLE
    } & known.keys()
    for name in asked:
        if name not in known:
            raise OptionError(f"--metric={name}: unknown metric.", close_to(name, known))
        if name not in measured:
            raise OptionError(
                f"--metric={name}: no run has it for a whole model.",
                f"Measured were: {some_names(sorted(measured))}. --metric=all shows all of them.",
            )
    if asked:
        return list(asked)
    ranked = ("brief", "html")
    main = next((found for table in ranked if (found := [n for n in measured if table in known[n].tables])), None)
    return main or sorted(measured)


def _subjects(runs: Sequence[StoredContent], asked: Sequence[str]) -> list[str]:
    """Roles and names that match any of the patterns."""
    names: set[str] = set()
    contents = [run.content for run in runs]
    keys = {key for content in contents for key in family_keys(content)}
    for key in keys:
        subjects = [
            [model for model in content["models"] if model["name"] in of_run]
            for content in contents
            if (of_run := family_keys(content).get(key))
        ]
        for roles in roles_of(subjects):
            names |= {*roles, *roles.values()}
    chosen: set[str] = set()
    for pattern in asked:
        found = {name for name in names if name == pattern or fnmatchcase(name.lower(), pattern.lower())}
        if not found:
            raise OptionError(
                f"--models={pattern}: no run has a model of that name or type.", f"Known: {some_names(sorted(names))}."
            )
        chosen |= found
    return sorted(chosen)
