"""What tests of attention share: requests of the worker's tasks, prompts read, and cores as a session has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from gguf_harness.engine.settings import SessionSettings
from gguf_harness.engine.worker import Worker
from gguf_harness.inputs.ladder import plan_ladder
from gguf_harness.inputs.models import load_info
from gguf_harness.inputs.options import read_options
from gguf_harness.inputs.prompts import Prompt
from gguf_harness.inputs.sources import expand
from gguf_harness.inputs.subjects import Subject
from gguf_harness.measure.attention.tasks import AttentionRequest, KeptPatterns
from gguf_harness.measure.core import Core
from gguf_harness.measure.live.facts import describe_model
from gguf_harness.measure.live.live_model import ATTENTION
from gguf_harness.measure.live.requests import ReadRequest
from gguf_harness.measure.live.tasks import read_prompt
from gguf_harness.measure.measuring import Progress
from gguf_harness.pytest_plugin.progress import SilentProgress
from gguf_harness.store.arrays import Arrays
from tests.command_line import parse_command_line

__all__ = ["PROMPTS", "make_request", "make_runner", "read_attention"]

PROMPTS = (
    Prompt("text", "The assignment statement evaluates the expression list and binds the resulting object."),
    Prompt("list", "alpha, beta, gamma; alpha, beta, gamma; alpha, beta\n" * 3),
    Prompt("one", ""),
)
"""Of 17, about 60 and, where there is a BOS, one token."""


def make_request(file: Path, folder: Path, prompts: tuple[Prompt, ...] = PROMPTS, **settings: Any) -> AttentionRequest:
    """A request to decode prompts with a file; settings as for `SessionSettings`."""
    info = load_info(expand(str(file))[0])
    return AttentionRequest(
        model=file.stem,
        files=(file,),
        architecture=info.architecture,
        n_layer=info.n_layer or 0,
        settings=SessionSettings(**{"threads": 2, **settings}),
        prompts=prompts,
        text=b"some words of a text, and some more words",
        folder=folder,
        limit_bytes=10**9,
        kept=KeptPatterns(2),
    )


def read_attention(worker: Worker, file: Path, prompt: Prompt, **settings: Any) -> Arrays:
    """What an open model reads of a prompt, with the layers of each kind stacked; settings as for `SessionSettings`."""
    how = SessionSettings(**{"threads": 2, **settings})
    facts = worker.call(describe_model, None, file.stem, (file,), how)
    kinds = (*ATTENTION, "scores")
    assert set(facts.attention) == set(kinds)
    request = ReadRequest(file.stem, (file,), how, prompt, attention=kinds, logits=False)
    arrays: Arrays = worker.call(read_prompt, None, request, facts)
    stacked = {kind: np.stack([arrays[f"{kind}_{layer}"] for layer in facts.attention_layers]) for kind in kinds}
    return (
        {name: arrays[name] for name in ("tokens", "pieces")} | {"layers": np.array(facts.attention_layers)} | stacked
    )


def make_runner(cache: Path, *arguments: str, progress: Progress | None = None) -> tuple[Core, list[Subject]]:
    """A core of its own with these options, and the models of its ladder, the reference first."""
    given = ["-p", "no:cacheprovider", f"--gguf-cache={cache}", *arguments]
    options = read_options(parse_command_line(*given))
    core = Core(options, progress or SilentProgress())
    return core, [core.subject(planned) for planned in plan_ladder(options).models]
