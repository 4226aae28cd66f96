"""Files in the cache that are gone, damaged or of another shape are measured again, and keys hold what counts."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_harness.engine.machine import describe_machine
from gguf_harness.errors import CorpusError
from gguf_harness.inputs.corpora import Corpus
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.prompts import Prompt, PromptSet
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.attention.calls import Attention
from gguf_harness.measure.core import Core
from gguf_harness.measure.layers.calls import Layers
from gguf_harness.measure.passes.calls import CorpusPass
from gguf_harness.measure.speed.calls import Speed
from gguf_harness.measure.speed.side_by_side import SpeedResult
from gguf_harness.measure.texts.calls import Texts
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from gguf_harness.store.cache import Cache
from tests.command_line import parse_command_line
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

CORPUS = Corpus("some", b"A few words to be read, and some more of them. " * 12)
PROMPTS = PromptSet("some", (Prompt("a", text="Some words"), Prompt("b", text="and others of them")))
Cores = Callable[..., "tuple[Core, Subject, Subject]"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return (
        write_random_llama(folder / "reference.gguf"),
        write_random_llama(folder / "candidate.gguf", noise=0.2),
    )


@pytest.fixture
def cores(files: tuple[Path, Path], tmp_path: Path) -> Iterator[Cores]:
    """`cores("--gguf-chunks=4")`: a session's core, its reference and its candidate."""
    opened: list[Core] = []

    def start(*arguments: str, session: str | None = None) -> tuple[Core, Subject, Subject]:
        given = [f"--models={files[0]},{files[1]}", f"--reference={files[0]}", f"--gguf-cache={tmp_path / 'cache'}"]
        given += [
            "--gguf-ctx=32",
            "--gguf-batch=64",
            "--gguf-chunks=4",
            "--gguf-threads=1",
            "--gguf-pp=8",
            "--gguf-tg=4",
            "--gguf-repetitions=1",
        ]
        options = read_options(parse_command_line(*given, *arguments))
        core = Core(options, SilentProgress(), session)
        opened.append(core)
        reference, candidate = (core.subject(planned) for planned in plan_ladder(options).models[:2])
        return core, reference, candidate

    yield start
    for core in opened:
        core.close()


def _only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def _zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize("harm", [Path.unlink, _cut, _zero], ids=["gone", "cut", "zero"])
def test_log_probabilities_that_are_lost_in_between_are_measured_again(
    cores: Cores, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Another session may make room, or a disk fail, after this one has found the reference's pass."""
    core, reference, candidate = cores()
    expected = CorpusPass(core, CORPUS).candidate(candidate, reference)
    shutil.rmtree(tmp_path / "cache" / "passes")

    core, reference, candidate = cores()
    CorpusPass(core, CORPUS).reference(reference, logprobs=True)
    harm(_only(tmp_path, "cache/passes/*/logprobs.u16"))
    arrays = CorpusPass(core, CORPUS).candidate(candidate, reference)
    assert all((arrays[name] == expected[name]).all() for name in expected)
    # The reference twice, and the candidate.
    assert (core.hits, core.misses) == (0, 3)


def test_a_reference_whose_arrays_went_is_measured_again(cores: Cores, tmp_path: Path) -> None:
    core, reference, candidate = cores()
    base = CorpusPass(core, CORPUS).reference(reference, logprobs=True)
    shutil.rmtree(tmp_path / "cache" / "passes")
    assert np.isfinite(CorpusPass(core, CORPUS).candidate(candidate, reference)["kld"].astype(np.float64)).all()
    again = CorpusPass(core, CORPUS).reference(reference, logprobs=True)
    assert (again["nll"] == base["nll"]).all()


def test_activations_and_states_that_are_lost_are_measured_again(cores: Cores, tmp_path: Path) -> None:
    core, reference, candidate = cores()
    expected = Attention(core, PROMPTS, CORPUS).compare(candidate, reference)
    whole = Layers(core, PROMPTS).compared(candidate, reference).arrays
    assert "error_attn_out" in whole
    exchanged = Layers(core, PROMPTS).exchanged(candidate, reference, [0])

    core, reference, candidate = cores()
    Attention(core, PROMPTS, CORPUS).observe(reference)
    Layers(core, PROMPTS).alone(reference, keep=True)
    for entry in (*tmp_path.glob("cache/attention/*"), *tmp_path.glob("cache/layers/*")):
        if entry.is_dir() and not any(entry.glob("activations.*")) and not (entry / "states").exists():
            shutil.rmtree(entry)
    _only(tmp_path, "cache/attention/*/activations.bin").unlink()
    # Half of them: what is left must not be compared as if it were all.
    _only(tmp_path, "cache/layers/*/states/attn_out.npy").unlink()
    again = Attention(core, PROMPTS, CORPUS).compare(candidate, reference)
    for one, other in zip(expected, again, strict=True):
        _same(one, other)
    _same(whole, Layers(core, PROMPTS).compared(candidate, reference).arrays)
    logits = _only(tmp_path, "cache/layers/*/states/logits.npy")
    logits.write_bytes(logits.read_bytes()[:-400] + bytes(400))
    _same(exchanged, Layers(core, PROMPTS).exchanged(candidate, reference, [0]))


def _same(one: Arrays, other: Arrays) -> None:
    assert one.keys() == other.keys()
    for name, values in one.items():
        np.testing.assert_array_equal(values, other[name], err_msg=name)


def test_values_of_another_shape_are_measured_again(
    cores: Cores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What others disturb is not kept, and tests run on busy machines.
    monkeypatch.setattr(SpeedResult, "is_disturbed", False)
    core, reference, _ = cores()
    expected = Speed(core).beside(reference)
    meta = _only(tmp_path, "cache/speed/*/meta.json")
    for wrong in ({}, {"timings": [1.0]}, {**expected.to_json(), "memory": None}):
        content = json.loads(meta.read_text())
        check = hashlib.sha256(json.dumps(wrong, sort_keys=True).encode()).hexdigest()
        meta.write_text(json.dumps(content | {"value": wrong, "check": check}))
        core, reference, _ = cores()
        assert set(Speed(core).beside(reference).timings) == set(expected.timings)
        assert (core.hits, core.misses) == (0, 1)
    core, reference, _ = cores()
    Speed(core).beside(reference)
    assert (core.hits, core.misses) == (1, 0)


def test_a_quantized_model_that_was_changed_is_made_again(cores: Cores, tmp_path: Path) -> None:
    core, *_ = cores("--gguf-quants=Q8_0")
    planned = plan_ladder(core.options).models[-1]
    model = core.subject(planned)
    content = model.files[0].read_bytes()
    for harmed in (content[:-500], b"no model", content[:-64] + bytes(64), b""):
        model.files[0].unlink()
        model.files[0].write_bytes(harmed)
        core, *_ = cores("--gguf-quants=Q8_0")
        assert core.subject(planned).sha256 == model.sha256
        assert model.files[0].read_bytes() == content


def test_room_is_made_for_all_windows(cores: Cores, tmp_path: Path) -> None:
    """How many there are is known when the text has been read: the number of --gguf-chunks does not tell."""
    old = Cache(tmp_path / "cache").entry("passes/reference", 2, {"of": "long ago"})
    old.save({})
    (old.folder / "logprobs.u16").write_bytes(bytes(200_000))
    core, reference, _ = cores("--gguf-chunks=all", "--gguf-cache-limit=300K")
    arrays = CorpusPass(core, CORPUS).reference(reference, logprobs=True)
    assert len(arrays["nll"]) > 12
    assert not (old.folder / "logprobs.u16").exists()
    assert core.cache.excess == 0
    for limit, fit in (("50K", "Use --gguf-chunks=6 or less, or raise"), ("10K", "Raise")):
        core, reference, _ = cores("--gguf-chunks=all", f"--gguf-cache-limit={limit}", "--gguf-fresh")
        with pytest.raises(CorpusError, match=f"--gguf-cache-limit is .*\n.*{fit} --gguf-cache-limit") as error:
            CorpusPass(core, CORPUS).reference(reference, logprobs=True)
        assert "log-probabilities would take 0." in str(error.value)


def test_fresh_keeps_what_the_same_session_has_measured(cores: Cores) -> None:
    """Processes of `pytest -n` start one after the other; what the first has measured is fresh to the last."""
    core, reference, _ = cores("--gguf-fresh", session="s")
    CorpusPass(core, CORPUS).reference(reference, logprobs=False)
    late, reference, _ = cores("--gguf-fresh", session="s")
    CorpusPass(late, CORPUS).reference(reference, logprobs=False)
    assert (late.hits, late.misses) == (1, 0)
    other, reference, _ = cores("--gguf-fresh", session="t")
    CorpusPass(other, CORPUS).reference(reference, logprobs=False)
    assert (other.hits, other.misses) == (0, 1)


def test_keys_say_what_numbers_depend_on_and_nothing_else(
    cores: Cores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SpeedResult, "is_disturbed", False)
    core, reference, candidate = cores()
    CorpusPass(core, CORPUS).candidate(candidate, reference)
    Texts(core, PROMPTS).generations(candidate)
    Speed(core).beside(reference)
    machine = describe_machine()
    keys: dict[str, list[str]] = {}
    for file in tmp_path.glob("cache/*/*/meta.json"):
        keys.setdefault(file.parent.parent.name, []).append(json.dumps(json.loads(file.read_text())["key"]))
    assert keys.keys() >= {"passes", "texts", "speed", "engine"}
    of_files = [str(tmp_path), str(reference.files[0].parent), "reference.gguf", "candidate.gguf"]
    of_times = [str(value) for value in _times(reference.files[0])]
    for kind, texts in keys.items():
        for text in texts:
            assert not any(value in text for value in of_files + of_times), kind
            assert str(machine["memory_bytes"]) not in text
            assert (machine["cpu"] in text) == (kind in {"speed", "engine"}), kind
            assert '"version": ' in text


def _times(file: Path) -> list[Any]:
    status = file.stat()
    return [status.st_mtime_ns, int(status.st_mtime)]
