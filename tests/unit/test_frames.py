"""A stored run as DataFrames: real types, the same columns everywhere, and nothing missing that looks like a number."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

import gguf_harness
from gguf_harness.cli import main
from gguf_harness.errors import StoreError
from gguf_harness.judge.regressions import Comparison
from gguf_harness.judge.verdicts import Verdict
from gguf_harness.metrics.records import Row
from gguf_harness.store.frames import FRAMES, StoredRun, open_run
from gguf_harness.store.run_draft import TestRecord
from gguf_harness.store.run_tables import TABLES, rows_of
from tests.stored_runs import STORED, any_run, stored_content, write_run

RUN = open_run(STORED / "run.json")
EMPTY = {"schema_version": 2, "id": "a", "estimates": []}

DTYPES = {
    "estimates": {"model": "string", "value": "float64", "se": "float64", "n": "Int64", "clusters": "Int64",
                  "layer": "Int64", "head": "Int64", "part": "string", "prompt": "string"},
    "models": {"name": "string", "file": "string", "variant": "string", "reference": "boolean", "bytes": "Int64",
               "bits_per_weight": "float64", "n_layer": "Int64", "context": "object", "adapters": "object"},
    "gates": {"verdict": "string", "value": "float64", "bound": "float64", "layer": "Int64", "more_clusters": "Int64"},
    "comparisons": {"partner": "string", "worse_by": "float64", "windows": "Int64", "changes": "object"},
    "tests": {"id": "string", "outcome": "string", "duration_s": "float64", "attempts": "Int64"},
    "texts": {"prompt": "string", "tokens": "Int64", "templated": "boolean"},
    "heads": {"layer": "Int64", "head": "Int64", "kind": "string"},
    "planned": {"model": "string", "metric": "string"},
}  # fmt: skip


def _frames(run: StoredRun) -> dict[str, pd.DataFrame]:
    return {name: getattr(run, name) for name in FRAMES}


def _types(frame: pd.DataFrame) -> dict[str, str]:
    return {str(name): str(dtype) for name, dtype in frame.dtypes.items()}


def test_numbers_are_those_of_the_file() -> None:
    content = stored_content()
    estimates = RUN.estimates
    assert len(estimates) == len(content["estimates"]) == 229
    (kld,) = estimates[(estimates["metric"] == "kld_mean") & (estimates["model"] == "smollm2-135m-Q4_K_M")]["value"]
    (row,) = [r for r in content["estimates"] if (r["metric"], r["model"]) == ("kld_mean", "smollm2-135m-Q4_K_M")]
    assert kld == row["value"]
    assert RUN.models.set_index("name").loc["smollm2-135m-F16", "bytes"] == 270885952
    assert RUN.models["reference"].sum() == 1
    assert RUN.gates["verdict"].value_counts().sum() == len(content["gates"])
    assert RUN.started == pd.Timestamp("2026-11-24T12:30:21", tz="UTC")
    assert isinstance(RUN.started, pd.Timestamp)
    assert RUN.started.tzinfo is not None
    assert (RUN.id, RUN.settings["ctx"], RUN.machine["cores"]) == (content["id"], 512, 2)
    assert repr(RUN) == f"<run {content['id']}: 6 models, 229 estimates, 57 tests>"
    with pytest.raises(dataclasses.FrozenInstanceError):
        RUN.id = "other"  # type: ignore[misc]


def test_columns_have_real_types_also_of_an_empty_run(tmp_path: Path) -> None:
    empty = _frames(open_run(write_run(tmp_path, EMPTY)))
    assert DTYPES.keys() == empty.keys() == {*TABLES} - {"arrays"}
    for name, frame in _frames(RUN).items():
        types = _types(frame)
        assert types.items() >= DTYPES[name].items()
        assert _types(empty[name]) == types
        assert list(empty[name].columns) == list(frame.columns)
        assert len(empty[name]) == 0
        assert not {"str", "int64", "bool"} & set(types.values())


def test_what_a_run_does_not_say_is_missing(tmp_path: Path) -> None:
    run = open_run(write_run(tmp_path, EMPTY))
    assert run.started is pd.NaT
    assert (run.settings, run.machine, len(run.arrays)) == ({}, {}, 0)
    # Runs of the first schema did not say of which layer, nor when a verdict is adjusted.
    assert RUN.estimates["layer"].isna().all()
    assert RUN.gates["p_adjusted"].isna().all()
    assert RUN.estimates["low"].isna().all()
    assert RUN.models["variant"].isna().all()
    assert RUN.models["context"].isna().all()
    assert RUN.estimates["se"].isna().any()
    assert pd.isna(RUN.estimates["layer"].sum(min_count=1))


@settings(max_examples=25)
@given(any_run())
def test_every_value_is_there_and_nothing_else(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(write_run(Path(folder), content))
    for name, frame in _frames(run).items():
        rows = rows_of(run.raw, name)
        assert len(frame) == len(rows)
        assert list(frame.columns) == list(TABLES[name])
        for column, kind in TABLES[name].items():
            for value, row in zip(frame[column], rows, strict=True):
                if row[column] is None:
                    assert pd.isna(value)
                else:
                    assert value == (float(row[column]) if kind.dtype == "float64" else row[column])
        assert _types(frame).items() >= DTYPES[name].items()


def test_all_that_sessions_record_has_a_column() -> None:
    for record, table in ((Row, "estimates"), (Verdict, "gates"), (Comparison, "comparisons"), (TestRecord, "tests")):
        assert {field.name for field in dataclasses.fields(record)} <= set(TABLES[table])


def test_arrays_are_read_when_asked_for(tmp_path: Path) -> None:
    key = ("smollm2-135m-Q4_K_M", "kld_quantiles")
    assert len(RUN.arrays) == 5
    assert key in RUN.arrays
    arrays = RUN.arrays[key]
    assert arrays["q"].dtype == np.float64
    assert np.all(np.diff(arrays["kld"]) >= 0)
    with pytest.raises(KeyError):
        RUN.arrays["smollm2-135m-Q4_K_M", "other"]

    # Nothing is opened before: a run whose files are gone has its tables all the same.
    (tmp_path / "secret.npz").write_bytes((STORED / "arrays" / "000-kld_quantiles.npz").read_bytes())
    entry = {"model": "m", "description": ""}
    run = open_run(
        write_run(
            tmp_path / "run",
            EMPTY
            | {
                "arrays": [
                    entry | {"name": "gone", "file": "arrays/000.npz"},
                    entry | {"name": "outside", "file": "../secret.npz"},
                    entry | {"name": "absolute", "file": str(tmp_path / "secret.npz")},
                    entry | {"name": "link", "file": "link.npz"},
                ]
            },
        )
    )
    (tmp_path / "run" / "link.npz").symlink_to(tmp_path / "secret.npz")
    assert [name for _, name in run.arrays] == ["gone", "outside", "absolute", "link"]
    assert all(key in run.arrays for key in run.arrays)
    with pytest.raises(StoreError, match="cannot be read"):
        run.arrays["m", "gone"]
    for name in ("outside", "absolute", "link"):
        with pytest.raises(StoreError, match="expected one in the folder of the run"):
            run.arrays["m", name]


def test_runs_are_found_as_by_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("20260101-000000-aaaa", "20260102-000000-bbbb"):
        write_run(tmp_path / "results" / "runs" / name, EMPTY | {"id": name})
    last = tmp_path / "results" / "runs" / "20260102-000000-bbbb"
    for spec in (last, str(last), last / "run.json", "last", "20260102", last.name):
        run = gguf_harness.load_run(spec, tmp_path / "results")
        assert (run.id, run.folder) == (last.name, last)
    monkeypatch.chdir(tmp_path)
    assert gguf_harness.load_run().id == last.name
    with pytest.raises(StoreError, match="There is no run 'x'"):
        gguf_harness.load_run("x")


def test_without_pandas_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(StoreError, match="need the package pandas") as raised:
        gguf_harness.load_run(STORED)
    assert raised.value.hint == "pip install pandas"
    assert main(["export", str(STORED), "-o", str(tmp_path)]) == 2
    assert "need the package pandas" in capsys.readouterr().err


def test_nothing_imports_pandas_before_a_run_is_read() -> None:
    code = (
        "import sys, gguf_harness, gguf_harness.api, gguf_harness.pytest_plugin.plugin, gguf_harness.cli.commands\n"
        "assert 'pandas' not in sys.modules\n"
        f"gguf_harness.load_run({str(STORED)!r})\n"
        "assert 'pandas' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
