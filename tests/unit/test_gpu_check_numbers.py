"""What `make gpu-check` makes of numbers: two devices beside each other, memory, and places of processes.

No GPU is here: NVML's answers are given, and lines of llama.cpp's log are those of an H200.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax

from gguf_harness.errors import NoData
from tests.gpu_check import two_gpus
from tests.gpu_check.comparing import compare_runs
from tests.gpu_check.divergence import Compared, judge, summarize
from tests.gpu_check.floors import FLOORS
from tests.gpu_check.memory import MIB, Reading, buffers_by_device
from tests.gpu_check.memory import judge as judge_memory
from tests.gpu_check.own_tests import read_junit

# -- token by token ---------------------------------------------------------------------------------------------------


def _compared(change: float, name: str = "tiny-F16", seed: int = 0) -> Compared:
    """Random logits, and the same with a uniform change."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=3, size=(4, 50, 60))
    cpu, gpu = log_softmax(logits, axis=2), log_softmax(logits + rng.uniform(-change, change, logits.shape), axis=2)
    target = rng.integers(0, 60, (4, 50, 1))

    def nll(logs: Any) -> Any:
        return -np.take_along_axis(logs, target, 2)[..., 0]

    values = {
        "nll": nll(gpu),
        "nll_reference": nll(cpu),
        "kld": (np.exp(cpu) * (cpu - gpu)).sum(axis=2),
        "kld_reverse": (np.exp(gpu) * (gpu - cpu)).sum(axis=2),
        "top": gpu.argmax(axis=2),
        "top_reference": cpu.argmax(axis=2),
    }
    return Compared(name, "Q" in name, values)


def test_numbers_are_those_of_the_definitions() -> None:
    compared = _compared(0.02)
    found, values = summarize(compared), compared.values
    assert found["kld_mean"] == pytest.approx(values["kld"].mean(), rel=1e-12)
    assert found["ppl_gpu"] == pytest.approx(math.exp(values["nll"].mean()), rel=1e-12)
    assert found["ln_ppl_ratio"] == pytest.approx((values["nll"] - values["nll_reference"]).mean(), rel=1e-9)
    assert found["same_top"] == (values["top"] == values["top_reference"]).mean()
    assert found["kld_mean_se"] > 0
    assert found["tokens"] == 200


def test_rounding_passes_and_another_model_does_not() -> None:
    near, far = _compared(0.01), _compared(0.5)
    passed = judge([near], "GPU")
    assert passed.verdict == "pass"
    assert passed.numbers["files"]["tiny-F16"]["kld_mean"] < 1e-4
    failed = judge([near, far], "GPU")
    assert failed.verdict == "fail"
    assert "tiny-F16: mean KL" in failed.reason
    assert judge([], "GPU").verdict == "fail"


@pytest.mark.parametrize("name", ["nll", "kld", "kld_reverse"])
def test_what_is_no_number_does_not_pass(name: str) -> None:
    compared = _compared(0.01)
    compared.values[name][0, 0] = np.nan
    with pytest.raises(NoData, match="1 of 200 samples are not finite"):
        judge([compared], "GPU")


def test_a_quantized_file_may_differ_by_more() -> None:
    between = _compared(0.2, "tiny-Q4_K_M")
    mean = float(between.values["kld"].mean())
    assert FLOORS["float"].kld_mean < mean < FLOORS["quantized"].kld_mean
    both = [judge([Compared(name, name != "F16", between.values)], "GPU") for name in ("F16", "Q4_K_M")]
    assert "mean KL" in both[0].reason
    assert "mean KL" not in both[1].reason or both[1].verdict == "pass"


@given(
    logits=arrays(np.float64, 8, elements=st.floats(-30, 30)),
    change=arrays(np.float64, 8, elements=st.floats(-1, 1)),
    size=st.floats(1e-3, 2),
)
def test_the_floor_is_a_bound(logits: Any, change: Any, size: float) -> None:
    """KL(p || q) <= e^2 / 2 where logits differ by at most e, up to a constant."""
    p, q = log_softmax(logits), log_softmax(logits + size * change + 7.0)
    assert float((np.exp(p) * (p - q)).sum()) <= size**2 / 2 + 1e-12


def test_a_floor_of_the_mean_is_below_the_bound_of_one_token() -> None:
    assert 1.1e-4 < FLOORS["float"].kld_mean < 0.066**2 / 2
    assert FLOORS["quantized"].kld_mean > 2 * 3.1e-3


# -- two runs ---------------------------------------------------------------------------------------------------------


def _estimate(metric: str, value: float, se: float | None = None, **place: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(("reference", "prompt", "layer", "head", "part"))
    given = {"suite": "quant", "test": "test_x", "model": "tiny-F16", "metric": metric, "value": value, "se": se}
    return empty | given | place


def _gate(metric: str, verdict: str, test: str = "t.py::test_x[tiny-Q4_K_M]", **place: Any) -> dict[str, Any]:
    empty: dict[str, Any] = dict.fromkeys(("layer", "head", "part", "prompt"))
    return empty | {"test": test, "metric": metric, "verdict": verdict} | place


def _sample_run() -> dict[str, Any]:
    return {
        "estimates": [
            _estimate("ppl", 44.5287, 15.0),
            _estimate("file_bytes", 10_113_310.0),
            _estimate("kld_mean", 0.0772, 0.005, model="tiny-Q4_K_M"),
            _estimate("pp_tokens_per_s", 1000.0, 10.0),
            _estimate("bleu", 80.0, 1.0, prompt="science"),
            *(_estimate("attn_cosine", 0.99, 0.01, model="tiny-Q4_K_M", layer=layer) for layer in range(40)),
        ],
        "gates": [_gate("kld_mean", "pass"), _gate("pp_tokens_per_s", "fail")],
    }


def test_the_same_run_passes() -> None:
    outcome = compare_runs(_sample_run(), _sample_run())
    assert outcome.verdict == "pass"
    assert outcome.numbers["perplexities"] == {"tiny-F16": {"cpu": 44.5287, "gpu": 44.5287}}
    # Timings have no part in it.
    assert (outcome.numbers["with_errors"], outcome.numbers["verdicts"]) == (42, 1)


def _changed(which: str, **change: Any) -> dict[str, Any]:
    run = copy.deepcopy(_sample_run())
    for each in run["estimates"]:
        if each["metric"] == which:
            each.update(change)
    return run


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        (_changed("ppl", value=45.0), "ln PPL of tiny-F16 changed by 0.011, expected at most 0.005"),
        (_changed("ppl", value=math.nan), "ln PPL of tiny-F16 changed by nan"),
        (
            _changed("file_bytes", value=10_113_311.5e0 * 1.1),
            "numbers that are read from files differ, such as file_bytes",
        ),
        (_changed("attn_cosine", value=0.95), "40 of 42 estimates are more than three standard errors apart"),
        (_changed("attn_cosine", value=math.nan), "40 of 42 estimates are more than three standard errors apart"),
        (_changed("kld_mean", metric="kld_median"), "only the CPU has kld_mean; only the GPU has kld_median"),
    ],
)
def test_what_differs_is_named(gpu: dict[str, Any], said: str) -> None:
    outcome = compare_runs(_sample_run(), gpu)
    assert outcome.verdict == "fail"
    assert said in outcome.reason


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_another_verdict_fails_and_a_missing_one_too(verdict: str) -> None:
    gpu = _sample_run()
    gpu["gates"][0]["verdict"] = verdict
    assert f"kld_mean is pass on the CPU, {verdict} on the GPU" in compare_runs(_sample_run(), gpu).reason
    del gpu["gates"][0]
    assert "kld_mean is pass on the CPU, missing on the GPU" in compare_runs(_sample_run(), gpu).reason


def test_verdicts_on_timings_and_places_of_worst_heads_may_differ() -> None:
    cpu, gpu = _sample_run(), _sample_run()
    gpu["gates"][1]["verdict"] = "pass"
    cpu["gates"].append(_gate("attn_cosine_worst_head", "pass", layer=4, head=6))
    gpu["gates"].append(_gate("attn_cosine_worst_head", "pass", layer=1, head=0))
    assert compare_runs(cpu, gpu).verdict == "pass"


@pytest.mark.parametrize("empty", ["estimates", "gates"])
def test_runs_with_nothing_in_them_do_not_pass(empty: str) -> None:
    assert compare_runs(_sample_run() | {empty: []}, _sample_run() | {empty: []}).verdict == "fail"


def test_timings_and_texts_may_differ() -> None:
    gpu = _changed("pp_tokens_per_s", value=9000.0)
    for each in gpu["estimates"]:
        if each["metric"] == "bleu":
            each["value"] = 3.0
    assert compare_runs(_sample_run(), gpu).verdict == "pass"


# -- memory -----------------------------------------------------------------------------------------------------------

LOG = """\
load_tensors:   CPU_Mapped model buffer size =     2.00 MiB
load_tensors:        CUDA0 model buffer size =     9.52 MiB
llama_context:  CUDA_Host  output buffer size =     0.02 MiB
llama_kv_cache:      CUDA0 KV buffer size =     1.25 MiB
sched_reserve:      CUDA0 compute buffer size =    11.01 MiB
sched_reserve:  CUDA_Host compute buffer size =     2.01 MiB
sched_reserve:      CUDA0 compute buffer size =    12.50 MiB
"""


def test_buffers_are_counted_by_device() -> None:
    found = buffers_by_device(LOG.splitlines())
    assert found["CUDA0"] == round(9.52 * MIB) + round(1.25 * MIB) + round(12.5 * MIB)
    assert found["CPU_Mapped"] == 2 * MIB
    assert set(found) == {"CUDA0", "CPU_Mapped", "CUDA_Host"}


def _readings(grown: int = 700, own: int = 1350, **change: Any) -> tuple[Reading, Reading]:
    short = {"own": 650 * MIB, "driver": 650 * MIB, "grown": 650 * MIB, "buffers": 24 * MIB}
    long = {"own": own * MIB, "driver": (650 + grown) * MIB, "grown": 1350 * MIB, "buffers": 724 * MIB}
    return Reading(**(short | change)), Reading(**(long | change))


def test_memory_that_grows_with_the_buffers_passes() -> None:
    outcome = judge_memory(*_readings())
    assert outcome.verdict == "pass"
    assert outcome.reason == "process and buffers grow by 700 and 700 MiB; 626 MiB besides buffers"


@pytest.mark.parametrize(
    ("readings", "said"),
    [
        (_readings(grown=600), "the process grew by 600 MiB, the buffers by 700 MiB, expected within 70 MiB"),
        (_readings(own=1300), "long context: the worker reads"),
        (_readings(driver=MIB, own=1), "are less than the buffers'"),
        (_readings(buffers=24 * MIB), "buffers grew by 0 MiB only"),
    ],
)
def test_memory_that_does_not_agree_fails(readings: tuple[Reading, Reading], said: str) -> None:
    outcome = judge_memory(*readings)
    assert outcome.verdict == "fail"
    assert said in outcome.reason


def test_a_driver_that_names_no_processes_has_not_passed() -> None:
    outcome = judge_memory(*_readings(driver=None))
    assert (outcome.verdict, outcome.absent) == ("not run", True)
    assert "the whole GPU grew by 700 MiB, the buffers by 700 MiB" in outcome.reason


# -- two GPUs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processes", "chosen", "cuml", "verdict", "said"),
    [
        ({0: {10}, 1: {20}}, 1, True, "pass", "GPU 0 alone, analyses on GPU 1 alone"),
        ({0: {10, 20}, 1: set()}, 1, True, "fail", "analyses are on GPUs [0], expected 1"),
        ({0: {10}, 1: {10, 20}}, 1, True, "fail", "the model is on GPUs [0, 1]"),
        ({0: {10}, 1: {20}}, 0, True, "fail", "were given GPU 0"),
        ({0: {10}, 1: set()}, 1, False, "not run", "without cuML they do not use it"),
        ({0: set(), 1: set()}, 1, True, "not run", "names no processes"),
    ],
)
def test_each_has_its_gpu(processes: Any, chosen: int, cuml: bool, verdict: str, said: str) -> None:
    outcome = two_gpus.judge(processes, {"model": 10, "analyses": 20}, chosen, cuml=cuml)
    assert outcome.verdict == verdict
    assert said in outcome.reason


# -- our own tests ----------------------------------------------------------------------------------------------------


def test_results_of_pytest_are_read(tmp_path: Path) -> None:
    cases = (
        '<testcase classname="a" name="one"/>'
        '<testcase classname="a" name="two"><failure message="assert 0.2 &lt; 0.1&#10;more">x</failure></testcase>'
        '<testcase classname="a" name="three"><error message="no model">x</error></testcase>'
        '<testcase classname="a" name="four"><skipped message="no wheel"/></testcase>'
    )
    file = tmp_path / "results.xml"
    file.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>", encoding="utf-8")
    found = read_junit(file)
    assert (found["tests"], found["passed"], found["skipped"]) == (4, 1, 1)
    assert found["failed"] == ["a.two: assert 0.2 < 0.1", "a.three: no model"]
