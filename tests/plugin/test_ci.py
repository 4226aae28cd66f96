"""Sessions as a CI runs them: summary and annotations on GitHub, JUnit files, exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from gguf_harness.cli import main
from tests.plugin.conftest import ReadRun, RunSuite
from tests.plugin.test_gates import _gates
from tests.random_llama import write_random_llama


@pytest.fixture(scope="module")
def worse_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_llama(tmp_path_factory.mktemp("worse") / "worse.gguf", noise=1.0)


@pytest.mark.shared_cache
@pytest.mark.model
def test_github_gets_a_summary_and_annotations(
    run_suite: RunSuite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, llama_file: Path, worse_file: Path
) -> None:
    summary = pytester.path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    models = [f"--models={llama_file},{worse_file}", f"--reference={llama_file}"]
    result = run_suite(*models, "-n", "2", tests="test_divergence.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    text = summary.read_text(encoding="utf-8")
    assert text.startswith("## No candidate passes every gate")
    assert text.count("## No candidate") == 1
    assert "### Failed gates\n\n- worse: KL mean is" in text
    errors = [line for line in result.outlines if line.startswith("::error title=worse fails the gate of ")]
    assert 1 <= len(errors) <= 3
    (folder,) = pytester.path.glob("results/runs/*")
    assert "gguf-harness: worse fails" in (folder / "badge.svg").read_text(encoding="utf-8")

    # Elsewhere there are no annotations, and an empty name is no file.
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "")
    monkeypatch.setenv("GITHUB_ACTIONS", "false")
    result = run_suite(*models, tests="test_divergence.py")
    assert not any(line.startswith("::") for line in result.outlines)
    assert "step summary" not in str(result.stdout)
    assert summary.read_text(encoding="utf-8") == text


@pytest.mark.shared_cache
@pytest.mark.model
def test_a_summary_that_cannot_be_written_fails_nothing(
    run_suite: RunSuite, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, llama_file: Path
) -> None:
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(pytester.path))
    result = run_suite(f"--models={llama_file}", tests="test_file.py")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["There is no step summary. GITHUB_STEP_SUMMARY=* could not be written: Is a dir*"])


def _properties(element: ET.Element) -> dict[str, str]:
    return {found.attrib["name"]: found.attrib["value"] for found in element.findall("./properties/property")}


@pytest.mark.shared_cache
@pytest.mark.model
@pytest.mark.parametrize(("family", "processes"), [("xunit1", 0), ("xunit2", 2)])
def test_junit_has_what_was_measured(
    run_suite: RunSuite,
    read_run: ReadRun,
    pytester: pytest.Pytester,
    llama_file: Path,
    worse_file: Path,
    family: str,
    processes: int,
) -> None:
    arguments = ["--junitxml=junit.xml", "-o", f"junit_family={family}", "-n", str(processes)]
    run_suite(
        f"--models={llama_file},{worse_file}", f"--reference={llama_file}", *arguments, tests="test_divergence.py"
    )
    run = read_run()
    text = (pytester.path / "junit.xml").read_text(encoding="utf-8")
    assert "gguf_" not in text.replace("gguf_harness", ""), "properties that the plugin keeps for itself"
    suite = ET.fromstring(text)[0]  # noqa: S314 - our own
    facts = _properties(suite)
    assert facts["gguf.run"] == run["id"]
    assert facts["gguf.reference"] == "random-F32"
    assert run["engine"]["llama_cpp"] in facts["gguf.engine"]
    assert facts["gguf.verdict[worse]"] == "fail"
    assert facts["gguf.gate.kld_mean[worse]"] == "fail"
    cases = {case.attrib["name"]: case for case in suite.findall("testcase")}
    assert len(cases) == len(run["tests"])
    assert all(("file" in case.attrib) == (family == "xunit1") for case in cases.values())
    case = cases["test_distribution_stays_close_to_reference[worse]"]
    properties = _properties(case)
    assert (properties["gguf.model"], properties["gguf.reference"]) == ("worse", "random-F32")
    row = next(row for row in run["estimates"] if row["metric"] == "kld_mean")
    pattern = r"(\S+) ± (\S+) nats \(n = 60\)"
    ((value, se),) = re.findall(pattern, properties["gguf.estimate.kld_mean"])
    assert [float(value), float(se)] == pytest.approx([row["value"], row["se"]], rel=1e-5)
    gate = next(gate for gate in run["gates"] if gate["metric"] == "kld_mean")
    assert (properties["gguf.gate.kld_mean"], properties["gguf.gate.kld_mean.detail"]) == ("fail", gate["detail"])
    assert case.find("failure") is not None


@pytest.mark.shared_cache
@pytest.mark.model
def test_junit_says_what_the_whole_run_decided(
    run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path, worse_file: Path
) -> None:
    """With --gguf-holm a test passes by itself, and fails at the end in a test case of its own."""
    run_suite(
        f"--models={llama_file},{worse_file}", f"--reference={llama_file}", "--gguf-holm", "--junitxml=junit.xml",
        _gates(pytester, "[kld_mean]\nlimit = 1e-9\n"), "--gguf-chunks=24", tests="test_divergence.py",
    )  # fmt: skip
    suite = ET.fromstring((pytester.path / "junit.xml").read_text(encoding="utf-8"))[0]  # noqa: S314 - our own
    name = "test_distribution_stays_close_to_reference[worse]"
    passed, failed = [case for case in suite.findall("testcase") if case.attrib["name"] == name]
    assert _properties(passed)["gguf.gate.kld_mean.alone"] == "fail"
    assert failed.find("failure") is not None
    assert _properties(failed)["gguf.model"] == "worse"
    assert _properties(failed)["gguf.gate.kld_mean"] == "fail"
    assert (suite.attrib["failures"], suite.attrib["errors"]) == ("1", "0")


def test_properties_of_others_are_left_alone(pytester: pytest.Pytester) -> None:
    pytester.makepyfile("def test_mine(record_property):\n    record_property('mine', 1)\n")
    pytester.runpytest_subprocess("--junitxml=junit.xml", "-o", "junit_family=xunit1", "-p", "no:cacheprovider")
    suite = ET.fromstring((pytester.path / "junit.xml").read_text(encoding="utf-8"))[0]  # noqa: S314 - our own
    assert _properties(suite) == {}
    assert _properties(suite[0]) == {"mine": "1"}


@pytest.mark.shared_cache
@pytest.mark.model
def test_exit_codes(run_suite: RunSuite, pytester: pytest.Pytester, llama_file: Path) -> None:
    models = f"--models={llama_file}"
    assert run_suite(models, tests="test_file.py").ret == 0
    assert run_suite(models, _gates(pytester, "[bits_per_weight]\nlimit = 16\n"), tests="test_file.py").ret == 1
    assert run_suite(models, "--gguf-ctx=0").ret == 4
    assert run_suite("--no-such-option").ret == 4
    assert run_suite(models, "-k", "nothing_of_that_name").ret == 5

    own = ["-p", "no:cacheprovider"]
    pytester.makepyfile(test_interrupted="def test_it(model):\n    raise KeyboardInterrupt\n")
    assert pytester.runpytest_subprocess(models, "test_interrupted.py", *own).ret == 2
    pytester.makepyfile(test_broken="import nothing_of_that_name\n")
    assert pytester.runpytest_subprocess(models, "test_broken.py", *own).ret == 2
    pytester.makepyfile(test_fine="def test_fine():\n    pass\n")
    pytester.makeconftest("def pytest_runtest_logreport(report):\n    raise ZeroDivisionError\n")
    assert pytester.runpytest_subprocess(models, "test_fine.py", *own).ret == 3


def test_the_help_tells_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    told = capsys.readouterr().out
    assert re.findall(r"(?m)^  (\d)  ", told) == ["0", "1", "2", "3", "4", "5"]


def test_badges_are_printed_or_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = Path(__file__).parent.parent / "data" / "run-smollm2"
    assert main(["badge", str(stored)]) == 0
    printed = capsys.readouterr().out
    assert "<title>gguf-harness: 3 of 5 pass</title>" in printed
    assert main(["badge", str(stored / "run.json"), "-o", str(tmp_path / "new" / "badge.svg")]) == 0
    assert (tmp_path / "new" / "badge.svg").read_text(encoding="utf-8") == printed
    assert capsys.readouterr().out == ""
    assert main(["badge", "last", "--results", str(tmp_path)]) == 2
    (tmp_path / "run.json").write_text(json.dumps({"schema_version": 99}))
    assert main(["badge", str(tmp_path)]) == 2
    assert "reads up to" in capsys.readouterr().err
