"""Properties in `--junitxml` files, of test cases and of the test suite, for readers and for CI.

Tests keep their results as JSON in `user_properties`, which pytest would write unchanged. They are replaced by these
properties of a test case:

    gguf.model                   the model under test
    gguf.reference               what it was compared with
    gguf.estimate.<metric>       `0.0575 ± 0.0022 nats (n = 4080)`: value, standard error if any, unit if any, samples;
                                 followed in brackets by the place of an estimate of a part: `[layer=3 head=1]`,
                                 `[prompt=fox]`; followed by details such as `: pp128, 3 repetitions`
    gguf.estimates.left_out      how many estimates of parts there are beyond the first hundred
    gguf.gate.<metric>           pass, fail or inconclusive; with --gguf-holm `gguf.gate.<metric>.alone`, because the
                                 verdict needs the whole run
    gguf.gate.<metric>.detail    its sentence; for a gate of a part of the model, the part follows the metric:
                                 `gguf.gate.resid_cka[layer=3]`
    gguf.baseline.<metric>       the sentence on how it compares with --gguf-baseline

and in those of the test suite `gguf.run`, `gguf.headline`, `gguf.reference`, `gguf.engine`, `gguf.verdict[<model>]`
(pass, fail, error, incomplete, inconclusive, or "measured, not gated"), `gguf.undecided[<model>]` (what makes it
incomplete) and `gguf.gate.<metric>[<model>]`, as the whole run decides. Names do not change between releases; shares
are fractions.

pytest writes properties of test cases in both of its families. The schema of xunit1 allows them; that of xunit2 does
not, so a validating reader needs `-o junit_family=xunit1`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

import pytest

from gguf_harness.pytest_plugin.state import BASELINE_PROPERTY, ESTIMATE_PROPERTY, GATE_PROPERTY
from gguf_harness.report.data import RunView, visible

__all__ = ["add_suite_properties", "readable", "writes_junit"]

_MOST_PARTS: Final = 100
_PARTS: Final = ("prompt", "layer", "head", "part")


class _LogXML(Protocol):
    def add_global_property(self, name: str, value: object) -> None: ...


def writes_junit(config: pytest.Config) -> bool:
    """Whether the session writes a JUnit file."""
    return bool(config.getoption("xmlpath", None))


def readable(
    properties: Iterable[tuple[str, object]], model: str | None, *, together: bool = False
) -> list[tuple[str, object]]:
    """A test's `user_properties` with ours in readable form; those of others are unchanged.

    Args:
        properties: names and values; ours are JSON.
        model: the model under test; None for a test of no model.
        together: whether gates are decided at the end of the run, by --gguf-holm.
    """
    words: list[tuple[str, object]] = []
    references: dict[str, None] = {}
    parts = 0
    for name, value in properties:
        if name == ESTIMATE_PROPERTY:
            row = json.loads(str(value))
            references |= {row["reference"]: None} if row["reference"] else {}
            parts += _is_part(row)
            if not _is_part(row) or parts <= _MOST_PARTS:
                words.append((f"gguf.estimate.{row['metric']}", _estimate(row)))
        elif name == GATE_PROPERTY:
            gate = json.loads(str(value))
            words += _gate(gate, ".alone" if together else "")
        elif name == BASELINE_PROPERTY:
            comparison = json.loads(str(value))
            words.append((f"gguf.baseline.{comparison['metric']}{_where(comparison)}", visible(comparison["detail"])))
        else:
            words.append((name, value))
    if parts > _MOST_PARTS:
        words.append(("gguf.estimates.left_out", parts - _MOST_PARTS))
    of_models = [("gguf.model", model), *(("gguf.reference", reference) for reference in references)]
    return [*((name, visible(text)) for name, text in of_models if text), *words]


def add_suite_properties(config: pytest.Config, run: Mapping[str, Any]) -> None:
    """Describe the run in the properties of the test suite, before pytest writes the file.

    pytest's fixture `record_testsuite_property` does the same from within a test, but not from one of xdist's workers.

    Args:
        config: of the process that writes the file.
        run: content of the run.json, as known after the last test.
    """
    # The plugin that writes the file is the one with this method; its class is not public.
    writers = [plugin for plugin in config.pluginmanager.get_plugins() if hasattr(plugin, "add_global_property")]
    for plugin in writers:
        _describe(plugin, run)


def _describe(xml: _LogXML, run: Mapping[str, Any]) -> None:
    view = RunView(run)
    engine = run.get("engine") or {}
    versions = [f"{name} {engine[key]}" for name, key in _ENGINE if engine.get(key)]
    facts = [("run", run["id"]), ("headline", view.headline())]
    facts += [(f"undecided[{model.name}]", told) for model in view.models for told in model.standing.missing]
    facts += [("reference", view.reference)] if view.reference else []
    facts += [("engine", ", ".join(versions))] if versions else []
    facts += [(f"verdict[{model.name}]", model.label) for model in view.candidates]
    if view.alone is not None and view.alone.standing.verdict:
        facts.append((f"verdict[{view.alone.name}]", view.alone.standing.verdict))
    facts += [
        (f"gate.{gate['metric']}[{gate['model']}]{_where(gate)}", gate["verdict"]) for gate in run.get("gates", [])
    ]
    for name, text in facts:
        xml.add_global_property(visible(f"gguf.{name}"), visible(text))


_ENGINE: Final = (("llama.cpp", "llama_cpp"), ("llama-cpp-python", "llama_cpp_python"))


def _is_part(row: Mapping[str, Any]) -> bool:
    return any(row.get(part) is not None for part in _PARTS)


def _estimate(row: Mapping[str, Any]) -> str:
    error = "" if row["se"] is None else f" ± {row['se']:.6g}"
    unit = f" {row['unit']}" if row["unit"] else ""
    part = _part(row)
    value = row["value"]
    # File sizes are exact.
    number = f"{value:.0f}" if float(value).is_integer() and abs(value) < 2**53 else f"{value:.6g}"
    text = f"{number}{error}{unit} (n = {row['n']})" + (f" [{part}]" if part else "")
    return visible(f"{text}: {row['detail']}" if row.get("detail") else text)


def _part(row: Mapping[str, Any]) -> str:
    return " ".join(f"{name}={visible(str(row[name]))}" for name in _PARTS if row.get(name) is not None)


def _where(finding: Mapping[str, Any]) -> str:
    """`[layer=3 head=1]` for an estimate of a part of a model; otherwise empty."""
    return f"[{part}]" if (part := _part(finding)) else ""


def _gate(gate: Mapping[str, Any], suffix: str) -> list[tuple[str, object]]:
    name = f"gguf.gate.{gate['metric']}{_where(gate)}"
    return [(f"{name}{suffix}", gate["verdict"]), (f"{name}.detail", visible(gate["detail"]))]
