"""Tables of a run as files: what was written is what is read back, by pandas and by others."""

from __future__ import annotations

import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from pyarrow import csv

from gguf_harness.cli import main
from gguf_harness.store.export import export_run
from gguf_harness.store.frames import FRAMES, StoredRun, open_run
from gguf_harness.store.run_tables import TABLES, rows_of
from tests.stored_runs import STORED, any_run, write_run

EMPTY = {"schema_version": 2, "id": "../odd", "estimates": []}


def _stored_text(value: object, dtype: str) -> Any:
    """What a file has of a value: JSON of lists and tables, escapes of what UTF-8 cannot hold."""
    if value is None:
        return None
    if dtype == "object":
        value = json.dumps(value, ensure_ascii=False)
    return value.encode("utf-8", "backslashreplace").decode("utf-8") if isinstance(value, str) else value


def _expected(run: StoredRun, table: str) -> dict[str, list[Any]]:
    return {
        column: [_stored_text(row[column], kind.dtype) for row in rows_of(run.raw, table)]
        for column, kind in TABLES[table].items()
    }


# Shrinking would take minutes: every example writes and reads sixteen files.
@settings(max_examples=15, phases=(Phase.reuse, Phase.generate))
@given(any_run())
def test_files_hold_what_the_run_holds(content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = open_run(write_run(Path(folder), content))
        for table, file in export_run(run, Path(folder) / "parquet", "parquet").items():
            assert pq.read_table(file).to_pydict() == _expected(run, table)
            frame = pd.read_parquet(file)
            for column, kind in TABLES[table].items():
                dtype = "string" if kind.dtype == "object" else kind.dtype
                assert str(frame[column].dtype) == dtype
                # NaN and NA alike, and nothing else, where the run says nothing.
                assert frame[column].isna().tolist() == [row[column] is None for row in rows_of(run.raw, table)]
        for table, file in export_run(run, Path(folder) / "csv", "csv").items():
            schema = pq.read_schema(Path(folder) / "parquet" / f"{table}.parquet")
            options = csv.ConvertOptions(
                column_types=dict(zip(schema.names, schema.types, strict=True)),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            )
            lines = csv.ParseOptions(newlines_in_values=True)
            read = csv.read_csv(io.BytesIO(file.read_bytes()), parse_options=lines, convert_options=options)
            assert read.to_pydict() == _expected(run, table)


def test_the_stored_run_comes_back_in_pandas(tmp_path: Path) -> None:
    run = open_run(STORED / "run.json")
    export_run(run, tmp_path, "parquet")
    export_run(run, tmp_path, "csv")
    parquet = pd.read_parquet(tmp_path / "estimates.parquet")
    pd.testing.assert_frame_equal(parquet, run.estimates, check_dtype=False)
    assert parquet.dtypes.astype(str).tolist() == run.estimates.dtypes.astype(str).tolist()
    dtypes = {name: kind.dtype for name, kind in TABLES["estimates"].items()}
    # Until 3.1 the default parser of pandas may miss a number's last bit; the file has them all.
    read = pd.read_csv(tmp_path / "estimates.csv", dtype=dtypes, float_precision="round_trip")
    # The one thing that pandas' reader of CSV cannot tell: a ratio's unit is an empty text.
    expected = run.estimates.assign(unit=run.estimates["unit"].replace("", pd.NA))
    pd.testing.assert_frame_equal(read, expected, check_exact=True, check_dtype=False)
    metadata = pq.read_schema(tmp_path / "gates.parquet").metadata
    assert metadata[b"gguf_harness.run"] == run.id.encode()
    assert metadata[b"gguf_harness.schema"] == b"2"
    assert metadata[b"gguf_harness.started"] == b"2026-11-24T12:30:21+00:00"


@pytest.mark.parametrize(("options", "end"), [([], "parquet"), (["--parquet"], "parquet"), (["--csv"], "csv")])
def test_the_command_writes_a_file_for_each_table_and_says_so(
    options: list[str], end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "results" / "runs" / "a", EMPTY | {"id": "a"})
    monkeypatch.chdir(tmp_path)
    assert main(["export", "last", *options, "-o", "out"]) == 0
    printed = capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"{name}.{end}" for name in FRAMES}
    for name in FRAMES:
        assert f"{name}.{end}" in printed
    assert main(["export", *options]) == 0
    assert {file.name for file in (tmp_path / "a").iterdir()} == {f"{name}.{end}" for name in FRAMES}


def test_an_id_is_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    file = write_run(tmp_path / "there", EMPTY)
    monkeypatch.chdir(tmp_path / "here")
    assert main(["export", str(file)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]
    assert len(list((tmp_path / "here").glob("*/estimates.parquet"))) == 1


def test_files_are_replaced_only_when_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "gates.csv").symlink_to(tmp_path / "nowhere")
    arguments = ["export", str(STORED), "--csv", "-o", str(out)]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert f"{out} has gates.csv already" in error
    assert "--force" in error
    assert [file.name for file in out.iterdir()] == ["gates.csv"]
    assert main([*arguments, "--force"]) == 0
    assert not (out / "gates.csv").is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert len(pd.read_csv(out / "gates.csv")) == 15
    assert main([*arguments[:2], "-o", str(out)]) == 0, "files of another kind are not in the way"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "There is no run 'nothing'"),
        (["{file}"], "cannot be read as JSON"),
        (["{stored}", "-o", "{file}"], "could not be written"),
        (["{stored}", "-o", "{file}/below"], "could not be written"),
        (["{stored}", "-o", ""], "A path is empty"),
        (["{stored}", "--csv", "--parquet"], "not allowed with argument"),
        (["{stored}", "{stored}"], "unrecognized arguments"),
    ],
)
def test_mistakes_are_one_message(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no run")
    given_ = [word.format(file=tmp_path / "file", stored=STORED) for word in arguments]
    try:
        code = main(["export", *given_, "--results", str(tmp_path)])
    except SystemExit as stop:  # argparse's own
        code = int(str(stop.code))
    told = capsys.readouterr()
    assert code == 2
    assert message in told.err
    assert "Traceback" not in told.err
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
