"""What makes two numbers of two runs comparable: contents, roles, conditions; and what is only told beside a change."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from gguf_harness.inputs.subjects import subject_name
from gguf_harness.metrics.registry import Estimated, Metric

__all__ = [
    "OF_PASS",
    "SAMPLED",
    "circumstances_of",
    "conditions_of",
    "content_of",
    "describe_differences",
    "family_keys",
    "roles_of",
]

Run = Mapping[str, Any]
Model = Mapping[str, Any]

SAMPLED: Final[frozenset[Estimated]] = frozenset({"timing", "requests", "memory"})
"""Kinds that are not the same when they are measured again, with the same file on the same machine."""

_OF_TEXT: Final[frozenset[Estimated]] = frozenset(
    {"corpus", "cache", "floor", "head windows", "group windows", "adapter windows", "positions", "needles"}
)
OF_PASS: Final[frozenset[Estimated]] = frozenset({"corpus", "cache", "positions"})
"""Of those that read a text, the kinds that read all windows of the pass."""
_OF_PROMPTS: Final[frozenset[Estimated]] = frozenset({"prompts"})

_SETTINGS: Final[Mapping[Estimated, Sequence[str]]] = {
    "corpus": ("side_by_side", "until_decided"),
    "cache": ("side_by_side", "until_decided", "kv_reference"),
    "positions": ("side_by_side", "until_decided", "kv_reference"),
    "floor": ("batch", "ubatch"),
    "prompts": ("gen_tokens", "layers", "heads", "words"),
    "repeats": ("layers", "heads"),
    "words": ("words",),
    "head windows": ("head_windows", "head_limit", "layers", "heads"),
    "group windows": ("sensitivity",),
    "adapter windows": ("lora_corpus",),
    "needles": ("haystacks", "depths", "kv_reference"),
    "timing": ("pp", "tg", "depths", "threads", "gpu", "gpu_layers", "flash_attention"),
    "requests": ("tg", "threads", "gpu", "gpu_layers", "llama_server"),
    "memory": ("ctx", "batch", "ubatch", "gpu", "gpu_layers", "flash_attention"),
}
"""Settings that change what is measured, by kind of estimate. Those that change only how it is computed (threads,
batches) are circumstances, except where time and memory are what is measured."""

_CONTEXT: Final = ("cache_type_k", "cache_type_v", "rotate_kv", "rope", "beyond_context")
"""Of how a subject is run. Its window length stands with the text."""

_CIRCUMSTANCES: Final[Mapping[str, tuple[str, str]]] = {
    "llama.cpp": ("engine", "llama_cpp"),
    "instruction sets": ("engine", "system_info"),
    "machine": ("machine", "cpu"),
    "cores": ("machine", "cores"),
    "GPUs": ("machine", "gpus"),
    "threads": ("settings", "threads"),
    "batch": ("settings", "batch"),
    "ubatch": ("settings", "ubatch"),
    "flash attention": ("settings", "flash_attention"),
    "GPU layers": ("settings", "gpu_layers"),
}
_MACHINE: Final = ("machine", "cores", "GPUs")
_DIGITS: Final = 12
_LONG: Final = 60
"""Of a value: a longer one, such as all instruction sets, is only said to have changed."""


def family_keys(run: Run) -> dict[str, list[str]]:
    """By hash of a family, the names of the run's subjects that belong to it.

    All of them, where the run has a reference; else each by the content of its own file. Subjects without a hash
    belong to none, nor do those of a run that ended before its reference was read.
    """
    models = run.get("models") or []
    reference = next((model for model in models if model.get("reference")), None)
    if reference is not None:
        return {reference["sha256"]: [model["name"] for model in models]} if reference.get("sha256") else {}
    if run.get("reference") is not None:
        return {}
    families: dict[str, list[str]] = {}
    for model in models:
        if model.get("sha256"):
            families.setdefault(model["sha256"], []).append(model["name"])
    return families


def content_of(model: Model) -> tuple[str, ...]:
    """Hashes of a subject's file and of its adapters, with their scales."""
    adapters = sorted(f"{adapter['sha256']}:{adapter['scale']:g}" for adapter in model.get("adapters") or [])
    return (str(model.get("sha256")), *adapters)


def roles_of(runs: Iterable[Sequence[Model]]) -> list[dict[str, str]]:
    """For each run of a family, the role of each of its subjects by name.

    Where two subjects of one run have the same type and variant, all subjects of that role are told apart by the names
    of their files, in every run.

    Args:
        runs: the subjects of each run.
    """
    listed = [list(models) for models in runs]
    ambiguous: set[str] = set()
    for models in listed:
        seen: set[str] = set()
        for role in (_role(model) for model in models):
            (ambiguous if role in seen else seen).add(role)
    return [
        {
            model["name"]: f"{role} ({model['file']})" if (role := _role(model)) in ambiguous else role
            for model in models
        }
        for models in listed
    ]


def _role(model: Model) -> str:
    kind = model.get("quantization") or model.get("file") or model["name"]
    return subject_name("reference" if model.get("reference") else str(kind), model.get("variant"))


def conditions_of(run: Run, model: Model, metric: Metric) -> dict[str, str]:
    """Under which conditions a metric of a subject was measured, as far as the run says.

    Args:
        run: content of a run.json.
        model: the subject's entry in it.
        metric: the metric's entry, whose kind decides what it depends on.
    """
    kind, settings = metric.estimated, run.get("settings") or {}
    found = {name: settings.get(name) for name in _SETTINGS.get(kind, ())} | _context(model)
    corpus, prompts = run.get("corpus"), run.get("prompts")
    if kind in _OF_TEXT and corpus:
        found |= {"text": f"{corpus['name']} {corpus['sha256'][:_DIGITS]}", "context": f"{corpus['n_ctx']} tokens"}
        found["windows"] = _windows(run, corpus, model) if kind in OF_PASS else _drawn(corpus)
    if kind in _OF_PROMPTS and prompts:
        found["prompts"] = f"{prompts['name']} {prompts['sha256'][:_DIGITS]}"
    if kind in SAMPLED:
        circumstances = circumstances_of(run)
        found |= {name: circumstances[name] for name in _MACHINE if name in circumstances}
    return {name: _text(value) for name, value in found.items() if value is not None}


def _context(model: Model) -> dict[str, Any]:
    context = model.get("context") or {}
    return {name: context.get(name) for name in _CONTEXT}


def _windows(run: Run, corpus: Mapping[str, Any], model: Model) -> str:
    """How many windows of the text a subject's pass read, and which."""
    early = next((one for one in run.get("early") or [] if one.get("model") == model["name"]), None)
    count = corpus["windows"] if early is None else early["windows"]
    return f"{count} {_drawn(corpus)}"


def _drawn(corpus: Mapping[str, Any]) -> str:
    """Runs of older versions read the first windows, and did not say how many there are."""
    available = corpus.get("available")
    return "from the start" if available is None or corpus.get("order") == "first" else f"drawn from {available}"


def circumstances_of(run: Run) -> dict[str, str]:
    """What numbers depend on by rounding, or by a defect: told beside a change of a number."""
    tables = {name: run.get(name) or {} for name in ("engine", "machine", "settings")}
    found = {name: tables[table].get(key) for name, (table, key) in _CIRCUMSTANCES.items()}
    found["gguf-harness"] = run.get("harness")
    return {name: _text(value) for name, value in found.items() if value is not None}


def describe_differences(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[str, ...]:
    """`windows (16 drawn from 237 -> 32 drawn from 237)`: what both know, and differs."""
    changed = [name for name in after if name in before and before[name] != after[name]]
    return tuple(
        name if max(len(before[name]), len(after[name])) > _LONG else f"{name} ({before[name]} -> {after[name]})"
        for name in changed
    )


def _text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return str(value.get("name", value))
    return str(value)
