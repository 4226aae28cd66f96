"""A reference's pass that grows: a prefix of the whole one in every respect, kept, continued, and measured again."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gguf_harness.errors import EngineError
from gguf_harness.inputs.corpora import load_corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.core import Core
from gguf_harness.measure.passes import growing as growing_module
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.measure.passes.decoding import CODES_FILE
from gguf_harness.measure.passes.growing import GrowingReference, planned_windows
from gguf_harness.metrics.windows import WindowLimit
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

CORPUS = load_corpus("pydoc")
WINDOWS = 24
SOON = (WindowLimit("kld_mean", 1000.0, 0.95, "soon"),)
Cores = Callable[..., "tuple[Core, Subject, Subject]"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    reference = write_random_llama(folder / "reference.gguf")
    return reference, write_random_llama(folder / "candidate.gguf", noise=0.2)


@pytest.fixture
def cores(files: tuple[Path, Path], tmp_path: Path) -> Iterator[Cores]:
    """`cores("--gguf-fresh")`: a session's core, its reference and its candidate."""
    opened: list[Core] = []

    def start(*arguments: str) -> tuple[Core, Subject, Subject]:
        given = [f"--models={files[0]},{files[1]}", f"--reference={files[0]}", f"--gguf-cache={tmp_path / 'cache'}"]
        given += ["--gguf-ctx=32", "--gguf-batch=64", f"--gguf-chunks={WINDOWS}", "--gguf-threads=2"]
        options = read_options(parse_command_line(*given, *arguments))
        core = Core(options, SilentProgress())
        opened.append(core)
        reference, candidate = (core.subject(planned) for planned in plan_ladder(options).models[:2])
        return core, reference, candidate

    yield start
    for core in opened:
        core.close()


def _growing(core: Core, reference: Subject) -> GrowingReference:
    return CorpusPass(core, CORPUS, reference, limits=SOON)._jobs.growing(reference)


def _codes(folder: Path) -> bytes:
    (file,) = folder.glob(f"passes/*/{CODES_FILE}")
    return file.read_bytes()


def _same(first: Arrays, second: Arrays) -> bool:
    return first.keys() == second.keys() and all((first[name] == second[name]).all() for name in first)


def test_every_prefix_is_that_of_the_whole_pass_which_goes_on_there(cores: Cores, tmp_path: Path) -> None:
    core, reference, _ = cores()
    growing = _growing(core, reference)
    assert growing.read() is None
    parts = [growing.first(windows) for windows in (4, 3, 10)]
    assert [len(part["nll"]) for part in parts] == [4, 4, 10]
    assert {planned_windows(part) for part in parts} == {WINDOWS}
    assert core.misses == 1

    # Another session without early decisions: it decodes the rest.
    core, reference, _ = cores()
    whole = CorpusPass(core, CORPUS).reference(reference, logprobs=True)
    codes = _codes(tmp_path / "cache")
    for part in parts:
        done = len(part["nll"])
        for name in ("nll", "top", "scale", "total", "tokens", "window"):
            assert (part[name] == whole[name][:done]).all(), name
    assert _growing(core, reference).first(2).keys() == whole.keys()

    shutil.rmtree(tmp_path / "cache" / "passes")
    core, reference, _ = cores()
    assert _same(CorpusPass(core, CORPUS).reference(reference, logprobs=True), whole)
    assert _codes(tmp_path / "cache") == codes


def test_growing_to_the_end_is_the_whole_pass(cores: Cores) -> None:
    core, reference, _ = cores()
    _growing(core, reference).first(20)
    grown = _growing(core, reference).first(None)
    assert "planned" not in grown
    core, reference, _ = cores()
    assert _same(CorpusPass(core, CORPUS).reference(reference, logprobs=True), grown)
    assert (core.hits, core.misses) == (1, 0)


def test_a_candidate_is_the_same_in_turns_as_after_the_whole_reference(
    cores: Cores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    core, reference, candidate = cores()
    in_turns = CorpusPass(core, CORPUS, reference, limits=SOON).candidate(candidate, reference)
    assert 4 <= len(in_turns["nll"]) <= 12
    base = _growing(core, reference).read()
    assert base is not None
    assert len(in_turns["nll"]) <= len(base["nll"]) <= len(in_turns["nll"]) + 1
    core.close()
    # Where memory does not hold both, all of the reference comes first.
    shutil.rmtree(tmp_path / "cache" / "passes")
    monkeypatch.setattr(growing_module, "hold_together", lambda *_, **__: False)
    core, reference, candidate = cores()
    alone = CorpusPass(core, CORPUS, reference, limits=SOON).candidate(candidate, reference)
    whole = _growing(core, reference).read()
    assert whole is not None
    assert len(whole["nll"]) == WINDOWS
    assert _same(alone, in_turns)


def test_damaged_log_probabilities_are_measured_again(cores: Cores, tmp_path: Path) -> None:
    core, reference, candidate = cores()
    expected = CorpusPass(core, CORPUS, reference, limits=SOON).candidate(candidate, reference)
    for entry in (tmp_path / "cache" / "passes").iterdir():
        if entry.is_dir() and (entry / CODES_FILE).is_file():
            file = entry / CODES_FILE
            file.write_bytes(bytes(file.stat().st_size))
        elif entry.is_dir():
            shutil.rmtree(entry)
    core, reference, candidate = cores()
    assert _same(CorpusPass(core, CORPUS, reference, limits=SOON).candidate(candidate, reference), expected)


def test_fresh_forgets_what_others_began_and_keeps_its_own(cores: Cores) -> None:
    core, reference, _ = cores()
    _growing(core, reference).first(10)
    core, reference, _ = cores("--gguf-fresh")
    assert _growing(core, reference).read() is None
    _growing(core, reference).first(4)
    base = _growing(core, reference).first(6)
    assert len(base["nll"]) == 6
    core, reference, _ = cores()
    kept = _growing(core, reference).read()
    assert kept is not None
    assert len(kept["nll"]) == 6


def test_a_reference_that_fails_is_tried_once(cores: Cores, monkeypatch: pytest.MonkeyPatch) -> None:
    core, reference, _ = cores()
    tried: list[object] = []

    def fail(job: object) -> Arrays:
        tried.append(job)
        raise EngineError("it died")

    monkeypatch.setattr(core, "measure", fail)
    for _ in range(2):
        with pytest.raises(EngineError, match="it died"):
            _growing(core, reference).first(4)
    assert len(tried) == 1


class _Stopping:
    """Progress that ends the session when so many windows are done."""

    def __init__(self, windows: int) -> None:
        self._windows = windows

    @contextlib.contextmanager
    def task(self, label: str, unit: str) -> Iterator[Callable[[int, int], None]]:
        def show(done: int, _: int) -> None:
            if label.startswith("candidate") and unit == "windows" and done >= self._windows:
                raise KeyboardInterrupt

        yield show


def test_a_candidate_whose_reference_was_lost_goes_on_where_it_was(cores: Cores, tmp_path: Path) -> None:
    """Progress of a candidate is kept with its own pass."""
    late = (WindowLimit("kld_mean", 1e-9, 0.95, "soon"), WindowLimit("same_top", 0.99999, 0.95, "late"))
    core, reference, candidate = cores()
    expected = CorpusPass(core, CORPUS, reference, limits=late).candidate(candidate, reference)
    assert len(expected["nll"]) > 6
    shutil.rmtree(tmp_path / "cache" / "passes")

    core, reference, candidate = cores()
    core.progress = _Stopping(6)
    with pytest.raises(KeyboardInterrupt):
        CorpusPass(core, CORPUS, reference, limits=late).candidate(candidate, reference)
    (stored,) = tmp_path.glob(f"cache/passes/*/{CODES_FILE}")
    shutil.rmtree(stored.parent)
    assert list(tmp_path.glob("cache/passes/*/partial.npz"))
    core.close()

    core, reference, candidate = cores()
    assert _same(CorpusPass(core, CORPUS, reference, limits=late).candidate(candidate, reference), expected)
