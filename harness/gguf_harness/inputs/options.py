"""The checked options of a session, as one frozen record."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import psutil

from gguf_harness.cluster.address import check_address
from gguf_harness.engine.settings import (
    DEFAULT_KV,
    NO_ROTATION,
    FlashAttention,
    KVTypes,
    RopeScaling,
    ServerSettings,
    SessionSettings,
    WindowOrder,
)
from gguf_harness.errors import OptionError, require_extra, visible
from gguf_harness.gguf.types import parse_quants
from gguf_harness.inputs.baseline_names import check_name, find_baseline
from gguf_harness.inputs.command_line import DEFAULT_MODEL, option_attributes, option_value, short_name
from gguf_harness.inputs.option_values import ANY_CLUSTER, Shard, checked_value
from gguf_harness.inputs.subject_values import AdapterSpec
from gguf_harness.store.paths import option_path

if TYPE_CHECKING:
    import pytest

    from gguf_harness.engine.settings import ServedRequest

__all__ = ["MapMethod", "Options", "SideBySide", "default_threads", "read_options", "whole_number"]

MapMethod = Literal["pca", "umap", "tsne"]
SideBySide = Literal["auto", "always", "never"]
_SERVED_CLIENTS: Final = 8
_SERVED_TOKENS: Final = 16
_SERVED_CTX: Final = 2048


@dataclass(frozen=True, slots=True)
class Options:
    """The options that the user gave, checked."""

    models: tuple[str, ...]
    reference: str | None
    quants: tuple[str, ...]
    imatrix: Path | None
    corpus: str
    ctx: int
    chunks: int | None
    batch: int
    ubatch: int
    kv: tuple[KVTypes, ...] | Literal["default"]
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
    haystacks: int
    depths: tuple[int, ...]
    head_limit: int | None
    analytics_gpu: int | None
    layers: tuple[int, ...] | None
    heads: tuple[int, ...] | None
    words: Path | None = None
    map: MapMethod = "pca"
    windows: WindowOrder = "sampled"
    beyond_context: bool = False
    side_by_side: SideBySide = "auto"
    kv_reference: KVTypes = DEFAULT_KV
    rotate_kv: bool = True
    rope: tuple[RopeScaling, ...] = ()
    lora: tuple[tuple[AdapterSpec, ...], ...] = ()
    lora_corpus: Path | None = None
    shard: Shard | None = None
    ray: str | None = None
    ray_runtime_env: Path | None = None
    budget_s: float | None = None

    @property
    def session_settings(self) -> SessionSettings:
        """Model settings for quality measurements."""
        return SessionSettings(
            n_ctx=self.ctx,
            n_batch=max(self.ctx, self.batch // self.ctx * self.ctx) if self.batch >= self.ctx else self.batch,
            n_ubatch=self.ubatch,
            threads=self.threads,
            flash_attention=self.flash_attention,
            n_gpu_layers=self.gpu_layers,
            beyond_context=self.beyond_context,
            rotate_kv=self.rotate_kv,
        )

    @property
    def server_settings(self) -> ServerSettings:
        """Settings for served models."""
        return ServerSettings(
            n_ctx=_SERVED_CTX, threads=self.threads, n_gpu_layers=self.gpu_layers, parallel=_SERVED_CLIENTS
        )

    @property
    def served_request(self) -> ServedRequest:
        """The request to a served model: short answers, since with llama_cpp.server most requests wait in a queue."""
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
        """Gate verdicts that fail a test."""
        return frozenset({"fail", "inconclusive"} if self.inconclusive == "fail" else {"fail"})

    def to_json(self) -> dict[str, Any]:
        """A dictionary of JSON types only, for run.json; paths as file names, without folders."""
        values = {field.name: _storable(getattr(self, field.name)) for field in fields(self)}
        # Where a cluster is, is nobody's business who reads a run.
        return values | {"ray": self.ray is not None}


def _storable(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_storable(part) for part in value]
    if isinstance(value, Path):
        return visible(value.name)
    if isinstance(value, KVTypes | RopeScaling):
        return str(value)
    if isinstance(value, AdapterSpec):
        return visible(str(replace(value, file=Path(value.file).name)))
    return visible(value) if isinstance(value, str) else value


def default_threads() -> int:
    """Physical cores available to this process, as llama.cpp counts them."""
    usable = len(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else psutil.cpu_count()
    return max(1, min(usable or 1, psutil.cpu_count(logical=False) or usable or 1))


def read_options(config: pytest.Config) -> Options:
    """Check the options. Relative paths start where pytest was started: a conftest may have changed the folder since.

    Raises:
        OptionError: for an invalid value.
    """
    from gguf_harness.engine.server import require_binary
    from gguf_harness.inputs.sources import as_seen_from, parse_specs

    known = option_attributes()

    def get(name: str) -> Any:
        return checked_value(short_name(name), option_value(config, name), known[name])

    start = Path(getattr(config, "workerinput", {}).get("gguf_start") or config.invocation_params.dir)
    _refuse_empty(get)
    models = tuple(as_seen_from(start, spec) for spec in parse_specs(get("--gguf-models") or [], start))
    if get("--gguf-models") and not models:
        raise OptionError("--models is empty.", "Give a path, glob, folder, alias or hf:org/repo:file.")
    quants = get("--gguf-quants")
    if not models and not get("--gguf-reference"):
        models = (DEFAULT_MODEL,)
        quants = quants or "default"

    def path_of(name: str) -> Path | None:
        written = get(name)
        return None if written is None else option_path(written, start)

    results = path_of("--gguf-results") or config.rootpath / "results"
    for name in ("--gguf-imatrix", "--gguf-gates", "--gguf-lora-corpus", "--gguf-ray-runtime-env"):
        if (path := path_of(name)) is not None and not path.is_file():
            problem = "a folder, a pipe or a device" if path.exists() else "no such file"
            raise OptionError(f"{name}={path}: {problem}.", "Give the path of an existing file.")
    if get("--gguf-baseline-map") and get("--gguf-baseline") is None:
        raise OptionError("--gguf-baseline-map without --gguf-baseline compares nothing.", "Give --gguf-baseline too.")
    baseline, saved = _baselines(get("--gguf-baseline"), get("--gguf-save-baseline"), results, start)
    options = Options(
        models=models,
        reference=as_seen_from(start, get("--gguf-reference")) if get("--gguf-reference") else None,
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
        kv_reference=get("--gguf-kv-reference") or DEFAULT_KV,
        rotate_kv=not whole_number(os.environ.get(NO_ROTATION, "")),
        rope=get("--gguf-rope"),
        lora=tuple(tuple(_seen_from(start, spec) for spec in specs) for specs in get("--gguf-lora")),
        lora_corpus=path_of("--gguf-lora-corpus"),
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
        side_by_side=get("--gguf-side-by-side"),
        timeout_s=get("--gguf-timeout"),
        gates=path_of("--gguf-gates"),
        inconclusive=get("--gguf-inconclusive"),
        holm=get("--gguf-holm"),
        until_decided=get("--gguf-until-decided"),
        baseline=baseline,
        baseline_map=tuple(get("--gguf-baseline-map") or ()),
        save_baseline=saved,
        fresh=get("--gguf-fresh"),
        shard=get("--gguf-shard"),
        budget_s=get("--gguf-budget"),
        sensitivity=get("--gguf-sensitivity"),
        head_windows=get("--gguf-head-windows"),
        haystacks=get("--gguf-haystacks"),
        depths=get("--gguf-depths"),
        head_limit=get("--gguf-head-limit"),
        analytics_gpu=get("--gguf-analytics-gpu"),
        words=path_of("--gguf-words"),
        map=get("--gguf-map"),
        layers=get("--gguf-layers"),
        heads=get("--gguf-heads"),
        ray=_cluster(get("--gguf-ray")),
        ray_runtime_env=path_of("--gguf-ray-runtime-env"),
    )
    _check_ray(options)
    if options.until_decided and options.windows == "first":
        raise OptionError(
            "--gguf-until-decided cannot be used with --gguf-windows=first: the first windows are not a sample of "
            "the text, so an early decision would only be about them.",
            "Leave out one of them.",
        )
    if options.shard is not None and options.save_baseline is not None:
        raise OptionError(
            "--gguf-save-baseline cannot be used with --gguf-shard: a baseline of one part lacks the other models.",
            "Give it to `gguf-harness merge`, which saves that of all parts.",
        )
    if options.map == "umap":
        require_extra("maps", "--gguf-map=umap")
    options.session_settings  # noqa: B018 - report an impossible combination now, not at the first model
    return options


def _cluster(asked: str | None) -> str | None:
    return asked if asked is None or asked == ANY_CLUSTER else check_address(asked)


def _check_ray(options: Options) -> None:
    """Refuse what cannot be done on a cluster, or not without one."""
    if options.ray is None:
        if options.ray_runtime_env is not None:
            raise OptionError("--gguf-ray-runtime-env without --gguf-ray does nothing.", "Give --gguf-ray, too.")
        return
    require_extra("ray", "--gguf-ray", "ray")
    if options.side_by_side == "always":
        raise OptionError(
            "--gguf-side-by-side=always cannot be used with --gguf-ray: reference and candidate would share memory, and"
            " a place on the cluster is for one of them.",
            "Leave one of them out; a larger --gguf-logprobs-limit lets the reference's log-probabilities be stored.",
        )


def _seen_from(start: Path, spec: AdapterSpec) -> AdapterSpec:
    """An adapter by a path from where pytest was started; an alias as it is."""
    path = option_path(spec.file, start)
    return replace(spec, file=str(path)) if path.exists() else spec


def whole_number(text: str) -> int:
    """The whole number that a text begins with, as C's atoi reads it: 0 if there is none."""
    match = re.match(r"\s*[+-]?\d+", text)
    return int(match[0]) if match else 0


def _refuse_empty(get: Callable[[str], Any]) -> None:
    """Refuse empty values of options that have no type to do so."""
    for name in ("--gguf-reference", "--gguf-corpus", "--gguf-baseline"):
        value = get(name)
        if value is not None and not value.strip():
            raise OptionError(
                f"{short_name(name)} is empty.",
                "Give a value, or leave it out; an unset shell variable is empty.",
            )


def _corpus(spec: str, start: Path) -> str:
    if spec in {"pydoc", "wikitext2"} or spec.startswith("hf:") or start == Path.cwd():
        return spec
    return str(option_path(spec, start))


def _baselines(compared: str | None, saved: str | None, results: Path, start: Path) -> tuple[Path | None, str | None]:
    if compared is None and saved is None:
        return None, None
    if compared == "":
        raise OptionError("--gguf-baseline is empty.", "Give a name or a file; an unset shell variable is empty.")
    return (
        None if compared is None else find_baseline(compared, results, start),
        None if saved is None else check_name(saved),
    )
