"""One question to a model, in one call: it is loaded, asked and freed. For several questions, `open` loads it once."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_harness.api.arguments import AnyPrompt
from gguf_harness.api.attention_results import Attention
from gguf_harness.api.head_results import HeadBehaviour
from gguf_harness.api.opened import open as open_model
from gguf_harness.api.state_results import HiddenStates
from gguf_harness.api.word_results import WordEmbeddings
from gguf_harness.measure.live.requests import Ablation
from gguf_harness.store.frames import StoredRun, frame_of, open_run
from gguf_harness.store.paths import option_path
from gguf_harness.store.runs import find_run

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["attention", "heads", "hidden_states", "history", "load_run", "word_embeddings"]


def attention(
    model: str | Path,
    prompt: AnyPrompt,
    *,
    layers: Iterable[int] | None = None,
    heads: Iterable[int] | None = None,
    off: Ablation | None = None,
    threads: int | None = None,
    gpu: int = 0,
) -> Attention:
    """Decode a prompt, and return the attention of every head of every layer.

        import gguf_harness
        attention = gguf_harness.attention("model-Q4_K_M.gguf", "The cat sat on the mat")
        attention.pattern[2, 7]    # layer 2, head 7: [pos, key]

    Arguments and errors are those of `open` and of `OpenModel.attention`.
    """
    with open_model(model, threads=threads, gpu=gpu) as opened:
        return opened.attention(prompt, layers=layers, heads=heads, off=off)


def hidden_states(
    model: str | Path, prompt: AnyPrompt, *, off: Ablation | None = None, threads: int | None = None, gpu: int = 0
) -> HiddenStates:
    """Decode a prompt, and return the residual stream around every block.

        states = gguf_harness.hidden_states("model-Q4_K_M.gguf", "The cat sat on the mat")
        states.resid_post[2, -1]    # [d_model] after layer 2, of the last token

    Decoded as by `attention`, without flash attention, so patterns and states match. Arguments and errors are those of
    `open` and of `OpenModel.hidden_states`.
    """
    with open_model(model, threads=threads, gpu=gpu) as opened:
        return opened.hidden_states(prompt, off=off)


def word_embeddings(
    model: str | Path, words: str | Path | None = None, *, threads: int | None = None, gpu: int = 0
) -> WordEmbeddings:
    """The token embeddings of a word list; arguments and errors as of `open` and `OpenModel.word_embeddings`."""
    with open_model(model, threads=threads, gpu=gpu) as opened:
        return opened.word_embeddings(words)


def heads(
    model: str | Path, prompts: str | Path | None = None, *, threads: int | None = None, gpu: int = 0
) -> HeadBehaviour:
    """What each head of a model does with a set of prompts; as of `open` and `OpenModel.heads`."""
    with open_model(model, threads=threads, gpu=gpu) as opened:
        return opened.heads(prompts)


def load_run(run: str | Path = "last", results: str | Path = "results") -> StoredRun:
    """Read a stored run: its estimates, models, gates and tests as pandas DataFrames.

        run = gguf_harness.load_run("last")
        run.estimates.query("metric == 'kld_mean'")[["model", "value", "se"]]
        run.arrays["model-Q4_K_M", "kld_quantiles"]    # NumPy arrays by name

    Args:
        run: a run.json, a run's folder, its id or the start of it, or `last`; runs of every version so far.
        results: folder of the runs for ids and `last`, as --gguf-results.

    Raises:
        StoreError: no run matches, or several do; it cannot be read, or is not a run; or pandas is not installed.
    """
    return open_run(find_run(os.fspath(run), option_path(results)))


def history(
    results: str | Path = "results",
    runs: Sequence[str | Path] = (),
    *,
    models: Sequence[str] = (),
    metrics: Sequence[str] = (),
) -> pd.DataFrame:
    """Metrics over many runs, as `gguf-harness history` shows them: a row for each value of each file in each run.

        history = gguf_harness.history()
        history.query("mark == 'worse'")[["role", "metric", "commit", "previous_change", "previous_se"]]

    Runs belong to one family if their reference has the same content, whatever its name. A change from an earlier
    value is paired by window where both runs stored the means of the same ones, and all changes are judged together.
    Columns are those of `gguf_harness.report.history.COLUMNS`; `started` is a time with its zone. What was left out,
    and why, is in `history.attrs["left_out"]`.

    Args:
        results: folder of the runs, as --gguf-results.
        runs: each a run.json, a run's folder, its id or the start of it, or `last`; all in `results` if none is given,
            of which those that cannot be read are left out.
        models: roles (`Q4_K_M`) or names of models, with `*` and `?`; all if none is given.
        metrics: names of metrics, or "all"; the main ones if none is given.

    Raises:
        StoreError: there are no runs; one that was named cannot be found or read; or pandas is not installed.
        OptionError: no run has such a model or metric.
    """
    from gguf_harness.judge.history import read_history
    from gguf_harness.report.history import COLUMNS, history_rows

    found = read_history(option_path(results), [os.fspath(run) for run in runs], models=models, metrics=metrics)
    frame = frame_of(history_rows(found), COLUMNS)
    import pandas as pd

    frame["started"] = pd.to_datetime(frame["started"], format="ISO8601", utc=True)
    frame.attrs["left_out"] = list(found.left_out)
    return frame
