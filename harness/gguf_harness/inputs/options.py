"""The command line: every option, its type, its default, and one frozen record of what was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import psutil

from gguf_harness.engine.settings import FlashAttention, KVTypes, ServerSettings, SessionSettings, WindowOrder
from gguf_harness.errors import OptionError, visible
from gguf_harness.gguf.types import DEFAULT_QUANTS, parse_quants
from gguf_harness.inputs.baseline_names import check_name, find_baseline
from gguf_harness.inputs.option_values import (
    all_or_at_least,
    at_least,
    checked_value,
    head_list,
    kv_pairs,
    parse_layers,
    seconds,
    size_in_bytes,
)
from gguf_harness.store.paths import option_path, path_text

if TYPE_CHECKING:
    import pytest

    from gguf_harness.engine.settings import ServedRequest

__all__ = [
    "DEFAULT_CACHE_LIMIT",
    "DEFAULT_MODEL",
    "MapMethod",
    "Options",
    "add_options",
    "default_threads",
    "given_options",
    "read_options",
]

DEFAULT_MODEL: Final = "tiny"
DEFAULT_CACHE_LIMIT: Final = 50 * 10**9
"""Bytes: distributions of some references, with the quantizations of a model of 7 billion weights."""
MapMethod = Literal["pca", "umap", "tsne"]
_SERVED_CLIENTS: Final = 8
_SERVED_TOKENS: Final = 16
_SERVED_CTX: Final = 2048
_MOST_TOKENS: Final = 2**24
MOST_THREADS: Final = 512
"""llama.cpp takes no more (GGML_MAX_N_THREADS)."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for, checked."""

    models: tuple[str, ...]
    reference: str | None
    quants: tuple[str, ...]
    imatrix: Path | None
    corpus: str
    ctx: int
    chunks: int | None
    batch: int
    ubatch: int
    kv: tuple[KVTypes, ...]
    threads: int
    flash_attention: FlashAttention
    gpu: int
    gpu_layers: int
    pp: int
    tg: int
    repetitions: int
    llama_server: Path | None
    prompts: Path | None
    gen_tokens: int
    results: Path
    cache: Path
    logprobs_limit: int
    cache_limit: int
    timeout_s: float
    gates: Path | None
    inconclusive: str
    holm: bool
    until_decided: bool
    baseline: Path | None
    baseline_map: tuple[str, ...]
    save_baseline: str | None
    fresh: bool
    sensitivity: int | None
    # heads: importance, interchange, removal
    head_windows: int
    head_limit: int | None
    analytics_gpu: int | None
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    words: Path | None = None
    map: MapMethod = "pca"
    windows: WindowOrder = "sampled"
    beyond_context: bool = False

    @property
    def session_settings(self) -> SessionSettings:
        """How models are run for quality measurements."""
        return SessionSettings(
            n_ctx=self.ctx,
            n_batch=max(self.ctx, self.batch // self.ctx * self.ctx) if self.batch >= self.ctx else self.batch,
            n_ubatch=self.ubatch,
            threads=self.threads,
            flash_attention=self.flash_attention,
            n_gpu_layers=self.gpu_layers,
            beyond_context=self.beyond_context,
        )

    @property
    def server_settings(self) -> ServerSettings:
        """How models are served."""
        return ServerSettings(
            n_ctx=_SERVED_CTX, threads=self.threads, n_gpu_layers=self.gpu_layers, parallel=_SERVED_CLIENTS
        )

    @property
    def served_request(self) -> ServedRequest:
        """What is asked of a served model: short answers, for with llama_cpp.server most of them wait in a queue."""
        from gguf_harness.engine.settings import ServedRequest

        return ServedRequest(
            requests=_SERVED_CLIENTS,
            concurrency=_SERVED_CLIENTS,
            max_tokens=min(self.tg, _SERVED_TOKENS),
            repetitions=self.repetitions,
            timeout_s=self.timeout_s,
        )

    @property
    def failing_verdicts(self) -> frozenset[str]:
        """Verdicts of gates that fail their test."""
        return frozenset({"fail", "inconclusive"} if self.inconclusive == "fail" else {"fail"})

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only, for run.json; paths as names, for they say nothing elsewhere."""
        return {field.name: _storable(getattr(self, field.name)) for field in fields(self)}


def _storable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_storable(part) for part in value]
    if isinstance(value, Path):
        return visible(value.name)
    return visible(value) if isinstance(value, str) else value


def default_threads() -> int:
    """Physical cores that this process may use, as llama.cpp counts them."""
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return max(1, min(usable or 1, psutil.cpu_count(logical=False) or usable or 1))


def add_options(parser: pytest.Parser) -> None:
    """Register every option with pytest."""
    _add_all(parser.getgroup("gguf", "gguf-harness: quantized language models").addoption)


def given_options(config: pytest.Config) -> list[str]:
    """Options that have another value than their default, wherever that comes from.

    The command line, PYTEST_ADDOPTS, `@file`, `addopts` of an ini file: argparse has read them all by now.
    """
    return [name for name, known in _attributes().items() if config.getoption(name) != known["default"]]


def _attributes() -> dict[str, dict[str, Any]]:
    """What argparse knows of every option."""
    known: dict[str, dict[str, Any]] = {}
    _add_all(lambda name, **attributes: known.update({name: attributes}))
    return known


def _add_all(add: Callable[..., None]) -> None:
    """Call `add` for every option, with argparse's attributes."""
    add("--models", action="append", metavar="SPEC[,SPEC...]", default=None,
        help="models under test: paths, globs, folders, aliases (tiny, smollm2-135m), hf:org/repo:file-or-quant; "
        f"repeatable (default: {DEFAULT_MODEL}, with --gguf-quants=default)")  # fmt: skip
    add("--reference", metavar="SPEC", default=None,
        help="model to compare candidates with (default: the one of highest precision among --models)")  # fmt: skip
    add("--gguf-quants", metavar="TYPE[,TYPE...]|default", default=None,
        help=f"quantize the reference to these types first and test them; `default` is {','.join(DEFAULT_QUANTS)} "
        "(default: none)")  # fmt: skip
    add("--gguf-imatrix", metavar="FILE", type=path_text, default=None,
        help="importance matrix to quantize with (default: none)")  # fmt: skip
    add("--gguf-corpus", metavar="NAME|PATH", default="pydoc",
        help="text to measure on: pydoc, wikitext2, a path, hf:org/dataset:file (default: pydoc)")  # fmt: skip
    add("--gguf-ctx", metavar="TOKENS", type=at_least(8, _MOST_TOKENS), default=512,
        help="window of the corpus, in tokens (default: 512)")  # fmt: skip
    add("--gguf-chunks", metavar="N|all", type=all_or_at_least(2), default=16,
        help="number of windows to measure (default: 16)")  # fmt: skip
    add("--gguf-windows", choices=("sampled", "first"), default="sampled",
        help="which windows of the text are measured: a fixed random sample of all of them, of which longer runs have "
        "more, or the first ones, as llama-perplexity does it (default: sampled)")  # fmt: skip
    add("--gguf-beyond-context", action="store_true", default=False,
        help="measure in windows, or with prompts, longer than the context that the model was trained on, where "
        "llama.cpp goes on and the predictions are worth little (default: off, an error)")  # fmt: skip
    add("--gguf-batch", metavar="TOKENS", type=at_least(8, _MOST_TOKENS), default=2048,
        help="logical batch of llama.cpp (default: 2048)")  # fmt: skip
    add("--gguf-ubatch", metavar="TOKENS", type=at_least(1, _MOST_TOKENS), default=512,
        help="physical batch of llama.cpp (default: 512)")  # fmt: skip
    add("--gguf-threads", metavar="N", type=at_least(1, MOST_THREADS), default=None,
        help="CPU threads (default: the physical cores)")  # fmt: skip
    add("--gguf-flash-attn", choices=("auto", "on", "off"), default="auto",
        help="flash attention of llama.cpp (default: auto)")  # fmt: skip
    add("--gguf-kv", metavar="K/V[,K/V...]", type=kv_pairs, default=(),
        help="types of the KV cache to run each model with, a candidate for each pair, such as f16/f16,q8_0/q4_0 "
        "(default: f16/f16)")  # fmt: skip
    add("--gguf-gpu", metavar="INDEX", type=at_least(-1), default=0,
        help="NVIDIA GPU for llama.cpp, -1 for none; ignored where there is no GPU (default: 0)")  # fmt: skip
    add("--gguf-gpu-layers", metavar="N", type=at_least(-1), default=-1,
        help="layers on the GPU, -1 for all (default: -1)")  # fmt: skip
    add("--gguf-pp", metavar="TOKENS", type=at_least(1, _MOST_TOKENS), default=128,
        help="prompt length of the speed test; llama-bench uses 512 (default: 128)")  # fmt: skip
    add("--gguf-tg", metavar="TOKENS", type=at_least(1, _MOST_TOKENS), default=32,
        help="generated tokens of the speed test; llama-bench uses 128 (default: 32)")  # fmt: skip
    add("--gguf-repetitions", metavar="N", type=at_least(1), default=3,
        help="repetitions of speed and served tests; llama-bench uses 5 (default: 3)")  # fmt: skip
    add("--gguf-llama-server", metavar="PATH", type=path_text, default=None,
        help="llama-server to serve models with (default: llama_cpp.server of llama-cpp-python)")  # fmt: skip
    add("--gguf-prompts", metavar="FILE", type=path_text, default=None,
        help="TOML file of prompts whose continuations are compared (default: 24 built-in prompts)")  # fmt: skip
    add("--gguf-gen-tokens", metavar="TOKENS", type=at_least(1, _MOST_TOKENS), default=32,
        help="most tokens to generate for each prompt (default: 32)")  # fmt: skip
    add("--gguf-words", metavar="FILE", type=path_text, default=None,
        help="TOML file of words whose embeddings are compared (default: a built-in list)")  # fmt: skip
    add("--gguf-map", choices=("pca", "umap", "tsne"), default="pca",
        help="how words are laid out in the report's map of embeddings (default: pca)")  # fmt: skip
    add("--gguf-results", metavar="DIR", type=path_text, default=None,
        help="folder for runs and reports (default: results in the root folder)")  # fmt: skip
    add("--gguf-cache", metavar="DIR", type=path_text, default=None,
        help="folder for measurements and quantized models (default: cache in the results folder)")  # fmt: skip
    add("--gguf-logprobs-limit", metavar="SIZE", type=size_in_bytes, default=size_in_bytes("8G"),
        help="most disk space for the log-probabilities of one reference, its activations or its hidden states, such "
        "as 500M or 8G (default: 8G)")  # fmt: skip
    add("--gguf-cache-limit", metavar="SIZE", type=size_in_bytes, default=DEFAULT_CACHE_LIMIT,
        help="most disk space for the whole cache; what was least recently used goes first (default: 50G)")  # fmt: skip
    add("--gguf-timeout", metavar="SECONDS", type=seconds, default=1800.0,
        help="longest silence of a worker process before it is stopped (default: 1800)")  # fmt: skip
    add("--gguf-gates", metavar="FILE", type=path_text, default=None,
        help="TOML file whose limits replace the built-in ones (default: none)")  # fmt: skip
    add("--gguf-inconclusive", choices=("warn", "fail"), default="warn",
        help="what an inconclusive gate does to its test (default: warn)")  # fmt: skip
    add("--gguf-holm", action="store_true", default=False,
        help="decide gates together, by Holm's correction over all of the run: their tests fail at its end "
        "(default: off, each gate by itself)")  # fmt: skip
    add("--gguf-until-decided", action="store_true", default=False,
        help="stop a candidate's pass over the corpus when all gates that it feeds are decided, with tests that allow "
        "for it; --gguf-chunks is the most (default: off, all windows)")  # fmt: skip
    add("--gguf-baseline", metavar="NAME|FILE", default=None,
        help="fail candidates that are worse than this baseline says they were (default: none)")  # fmt: skip
    add("--gguf-baseline-map", action="append", metavar="OLD=NEW[,OLD=NEW...]", default=None,
        help="model of the baseline and the one of this run to compare with it, where names, types and families do not "
        "tell; repeatable (default: the same name, or else the only one of the same type and family)")  # fmt: skip
    add("--gguf-save-baseline", metavar="NAME", default=None,
        help="save what this run measures as results/baselines/NAME.json (default: off)")  # fmt: skip
    add("--gguf-fresh", action="store_true", default=False,
        help="measure again even where the cache has the result (default: off)")  # fmt: skip
    add("--gguf-sensitivity", metavar="N|all", type=all_or_at_least(0), default=2,
        help="number of candidates, the smallest, to decode with only one group of tensors quantized at a time, and "
        "with one restored (default: 2)")  # fmt: skip
    add("--gguf-head-windows", metavar="N", type=at_least(2), default=4,
        help="windows of 96 tokens, spread over the corpus, on which heads are ablated (default: 4)")  # fmt: skip
    add("--gguf-head-limit", metavar="N|all", type=all_or_at_least(2), default=64,
        help="most heads of a model that are ablated one by one; of more, those that ablations of random subsets put "
        "first (default: 64)")  # fmt: skip
    add("--gguf-analytics-gpu", metavar="INDEX", type=at_least(-1), default=None,
        help="NVIDIA GPU for analyses of activations and embeddings, -1 for none; used where cuML is installed "
        "(default: the second, or else the first)")  # fmt: skip
    add("--gguf-heads", metavar="HEADS", type=head_list, default=None,
        help="heads of these layers whose patterns the report shows, counted from 0, such as 0-3,7 "
        "(default: all)")  # fmt: skip
    add("--gguf-layers", metavar="LAYERS", type=parse_layers, default=None,
        help="layers to look into, counted from 0, such as 0-3,7 (default: all)")  # fmt: skip


def read_options(config: pytest.Config) -> Options:
    """Check what was given. Relative paths begin where pytest was started: a conftest may have gone elsewhere since.

    Raises:
        OptionError: for a value that cannot be used.
    """
    from gguf_harness.engine.server import require_binary
    from gguf_harness.inputs.sources import as_seen_from, parse_specs

    known = _attributes()

    def get(name: str) -> Any:
        return checked_value(name, config.getoption(name), known[name])

    start = Path(getattr(config, "workerinput", {}).get("gguf_start") or config.invocation_params.dir)
    _refuse_empty(get)
    models = tuple(as_seen_from(start, spec) for spec in parse_specs(get("--models") or [], start))
    if get("--models") and not models:
        raise OptionError("--models is empty.", "Give a path, glob, folder, alias or hf:org/repo:file.")
    quants = get("--gguf-quants")
    if not models and not get("--reference"):
        models = (DEFAULT_MODEL,)
        quants = quants or "default"

    def path_of(name: str) -> Path | None:
        written = get(name)
        return None if written is None else option_path(written, start)

    results = path_of("--gguf-results") or config.rootpath / "results"
    for name in ("--gguf-imatrix", "--gguf-gates"):
        if (path := path_of(name)) is not None and not path.is_file():
            problem = "a folder, a pipe or a device" if path.exists() else "no such file"
            raise OptionError(f"{name}={path}: {problem}.", "Give the path of an existing file.")
    if get("--gguf-baseline-map") and get("--gguf-baseline") is None:
        raise OptionError("--gguf-baseline-map without --gguf-baseline compares nothing.", "Give --gguf-baseline too.")
    baseline, saved = _baselines(get("--gguf-baseline"), get("--gguf-save-baseline"), results, start)
    options = Options(
        models=models,
        reference=as_seen_from(start, get("--reference")) if get("--reference") else None,
        quants=parse_quants(quants) if quants is not None else (),
        imatrix=path_of("--gguf-imatrix"),
        corpus=_corpus(get("--gguf-corpus"), start),
        ctx=get("--gguf-ctx"),
        chunks=get("--gguf-chunks"),
        windows=get("--gguf-windows"),
        beyond_context=get("--gguf-beyond-context"),
        batch=get("--gguf-batch"),
        ubatch=get("--gguf-ubatch"),
        kv=get("--gguf-kv"),
        threads=get("--gguf-threads") or default_threads(),
        flash_attention=get("--gguf-flash-attn"),
        gpu=get("--gguf-gpu"),
        gpu_layers=get("--gguf-gpu-layers"),
        pp=get("--gguf-pp"),
        tg=get("--gguf-tg"),
        repetitions=get("--gguf-repetitions"),
        llama_server=require_binary(binary) if (binary := path_of("--gguf-llama-server")) is not None else None,
        prompts=path_of("--gguf-prompts"),
        gen_tokens=get("--gguf-gen-tokens"),
        results=results.absolute(),
        cache=(path_of("--gguf-cache") or results / "cache").absolute(),
        logprobs_limit=get("--gguf-logprobs-limit"),
        cache_limit=get("--gguf-cache-limit"),
        timeout_s=get("--gguf-timeout"),
        gates=path_of("--gguf-gates"),
        inconclusive=get("--gguf-inconclusive"),
        holm=get("--gguf-holm"),
        until_decided=get("--gguf-until-decided"),
        baseline=baseline,
        baseline_map=tuple(get("--gguf-baseline-map") or ()),
        save_baseline=saved,
        fresh=get("--gguf-fresh"),
        sensitivity=get("--gguf-sensitivity"),
        head_windows=get("--gguf-head-windows"),
        head_limit=get("--gguf-head-limit"),
        analytics_gpu=get("--gguf-analytics-gpu"),
        words=path_of("--gguf-words"),
        map=get("--gguf-map"),
        layers=get("--gguf-layers"),
        heads=get("--gguf-heads"),
    )
    if options.until_decided and options.windows == "first":
        raise OptionError(
            "--gguf-until-decided cannot go with --gguf-windows=first: the first windows are no sample of the text, and"
            " what they decide early would be about them.",
            "Leave out one of the two.",
        )
    options.session_settings  # noqa: B018 - an impossible combination is an error now, not at the first model
    return options


def _refuse_empty(get: Callable[[str], Any]) -> None:
    """What is no path alone has no type that could say so."""
    for name in ("--reference", "--gguf-corpus", "--gguf-baseline"):
        value = get(name)
        if value is not None and not value.strip():
            raise OptionError(
                f"{name} is empty.", "Give a value, or leave it out; a variable that is not set leaves nothing."
            )


def _corpus(spec: str, start: Path) -> str:
    if spec in {"pydoc", "wikitext2"} or spec.startswith("hf:") or start == Path.cwd():
        return spec
    return str(option_path(spec, start))


def _baselines(compared: str | None, saved: str | None, results: Path, start: Path) -> tuple[Path | None, str | None]:
    if compared is None and saved is None:
        return None, None
    if compared == "":
        raise OptionError("--gguf-baseline is empty.", "Give a name or a file; an unset variable leaves nothing.")
    return (
        None if compared is None else find_baseline(compared, results, start),
        None if saved is None else check_name(saved),
    )
