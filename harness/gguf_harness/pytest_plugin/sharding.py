"""`--gguf-shard`: keep the tests of one part of the run, and write down the plan of the whole.

Each model file belongs to one part, with all of its subjects; tests that are about no model to the first. Every part
computes the same plan, from what all have in common: files, options, and the tests that options such as -k select.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import pytest

from gguf_harness import __version__
from gguf_harness.errors import HarnessError, visible
from gguf_harness.inputs.option_values import Shard
from gguf_harness.judge.plan import plan_comparisons, suite_of, suites_under
from gguf_harness.judge.shards import LOCAL, digest_of, part_models, plan_models
from gguf_harness.pytest_plugin.distribution import append_id
from gguf_harness.pytest_plugin.items import model_name, ours_of, subject_of
from gguf_harness.pytest_plugin.order import order_of_models
from gguf_harness.pytest_plugin.state import State
from gguf_harness.store.file_hashes import hash_files

__all__ = ["Sharding"]

_FIRST: Final = 1
_MARK: Final = "\x1egguf-shard "
"""Begins the plan among the ids of tests that a worker of xdist sends. pytest escapes the first character in ids."""


class Sharding:
    """Plugin of a session with `--gguf-shard`.

    Args:
        state: of the session.
        shard: the part to measure.
    """

    def __init__(self, state: State, shard: Shard) -> None:
        self._state = state
        self._shard = shard

    # Around all others: what -k, -m and others deselect belongs to no part.
    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, config: pytest.Config, items: list[pytest.Item]
    ) -> Generator[None, object, object]:
        """Deselect the tests of other parts."""
        result = yield
        plan = _plan(self._state, items, self._shard.of)
        places = {model["file"]: model["shard"] for model in plan["models"]}
        mine: list[pytest.Item] = []
        others: list[pytest.Item] = []
        for item in items:
            (mine if _place(item, places) == self._shard.number else others).append(item)
        self._state.shard = {"index": self._shard.number, "of": self._shard.of, "plan": plan}
        items[:] = mine
        if others:
            config.hook.pytest_deselected(items=others)
        if hasattr(config, "workerinput"):
            append_id(config, f"{_MARK}{json.dumps(self._state.shard)}")
        return result

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Take the plan out of the ids that a worker collected."""
        plans = [test for test in ids if test.startswith(_MARK)]
        if plans:
            self._state.shard = json.loads(plans[0].removeprefix(_MARK))
            ids[:] = [test for test in ids if not test.startswith(_MARK)]

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        """Show the files of this part."""
        if self._state.shard is None:
            return []
        plan = self._state.shard["plan"]
        files = ", ".join(visible(name) for name in part_models(plan, self._shard.number)) or "no file"
        return [f"{self._shard}: {files} ({len(items)} of {plan['tests']['count']} tests)"]


def _place(item: pytest.Item, places: dict[str, int]) -> int:
    """The shard of a test: that of its file; the first for tests of none, among them those of other projects."""
    subject = subject_of(item) if ours_of(item) else None
    return _FIRST if subject is None else places.get(subject.model.name, _FIRST)


def _plan(state: State, items: list[pytest.Item], shards: int) -> dict[str, Any]:
    """The plan of the whole run, as JSON types: everything that must be the same for all of its parts."""
    options, ladder = state.options, state.ladder
    ours = [item for item in items if ours_of(item)]
    order = order_of_models(ladder, until_decided=state.divergence and bool(state.early_limits))
    tested = {name for item in ours if (name := model_name(item)) is not None}
    plan: dict[str, Any] = {
        "of": shards,
        "harness": __version__,
        "reference": None if ladder.reference is None else ladder.reference.name,
        "models": plan_models(ladder, order, tested, shards, suites_under(state.config.args)),
        "settings": {name: value for name, value in options.to_json().items() if name not in LOCAL},
        "gates": {metric: asdict(gate) for metric, gate in state.gates.items()},
        "texts": _texts(state, ours),
        "suites": sorted(state.suites),
        "compared_with": state.baseline_settings,
        "comparisons": plan_comparisons(state.suites, ladder),
        "tests": {"count": len(items), "sha256": _hash(sorted(_portable(item) for item in items))},
        "baseline": _content(options.baseline),
    }
    return plan | {"digest": digest_of(plan)}


def _texts(state: State, ours: Iterable[pytest.Item]) -> dict[str, str | None]:
    """Hashes of what is read besides models; of a text on a hub, its name."""
    from gguf_harness.inputs.corpora import load_corpus
    from gguf_harness.inputs.ladder import origin_of
    from gguf_harness.inputs.models import load_info

    options, corpus = state.options, None
    if any(isinstance(item, pytest.Function) and "corpus" in item.fixturenames for item in ours):
        corpus = options.corpus
        if corpus != "wikitext2" and not corpus.startswith("hf:"):
            held_out: tuple[str, ...] = ()
            try:
                reference = state.ladder.reference
                source = None if reference is None else origin_of(reference.model).source
                held_out = () if source is None else load_info(source).held_out_topics
            except HarnessError:
                held_out = ()  # its own tests fail with this error
            corpus = load_corpus(corpus, held_out_topics=held_out).sha256
    return {
        "corpus": corpus,
        "prompts": state.prompts.sha256,
        "words": state.words.sha256,
        "imatrix": _content(options.imatrix),
        "adapters' corpus": _content(options.lora_corpus),
    }


def _content(file: Path | None) -> str | None:
    return None if file is None else hash_files([file], None)


def _portable(item: pytest.Item) -> str:
    """The id of a test; of one of the bundled suites, whatever folder they are installed in."""
    suite = suite_of(item.path)
    if suite is None:
        return item.nodeid
    return f"{suite}/{item.path.name}::{item.nodeid.partition('::')[2]}"


def _hash(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()
