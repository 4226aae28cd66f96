"""The plan of a run that is measured in parts, `--gguf-shard`: which part has which files, and which belong together.

Every part computes the plan of the whole from the command line, the headers of the files and the collected tests, so
that parts need not know of each other. Its content is stored with the part: `gguf-harness merge` takes only parts
whose plans have the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.errors import HarnessError
from gguf_harness.gguf.types import FTYPES
from gguf_harness.inputs.ladder import identities_of, origin_of
from gguf_harness.inputs.models import least_bits, load_info
from gguf_harness.inputs.pairing import Identity
from gguf_harness.store.file_hashes import sample_files

if TYPE_CHECKING:
    from gguf_harness.inputs.ladder import Ladder, PlannedModel

__all__ = [
    "LOCAL",
    "assign",
    "difference",
    "digest_of",
    "identities_in",
    "machine_words",
    "machines_of",
    "part_models",
    "plan_models",
    "planned_bytes",
    "planned_here",
    "shard_words",
]

LOCAL: Final = frozenset({
    "models", "reference", "results", "cache", "cache_limit", "timeout_s", "fresh", "threads", "gpu", "analytics_gpu",
    "shard", "save_baseline", "baseline", "gates", "imatrix", "prompts", "words", "corpus",
    "lora_corpus", "ray", "ray_runtime_env",
})  # fmt: skip
"""Settings that may differ between the parts of a run: those of a machine, and paths, whose content is in the plan."""

_MOST_NAMES: Final = 8


def assign(weights: Mapping[str, int], shards: int) -> dict[str, int]:
    """The shard of each file, from 1: the heaviest first, each onto the shard that has least.

    It depends on nothing but the names and weights: equal weights go by name, equally loaded shards by number. The
    heaviest shard has at most 4/3 - 1/(3 n) times the load of the best assignment (R. L. Graham, "Bounds on
    multiprocessing timing anomalies", SIAM J. Appl. Math. 17, 1969).

    Args:
        weights: by file.
        shards: how many there are; those without a file stay empty.
    """
    loads = [0] * shards
    chosen = {}
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        least = loads.index(min(loads))
        chosen[name] = least + 1
        loads[least] += weights[name]
    return chosen


def planned_bytes(model: PlannedModel) -> int:
    """Size of a file; of one that is quantized first, about that of its type, whether it is in a cache or not."""
    origin = origin_of(model)
    if origin.source is None:
        return 0
    try:
        if model.quant is None:
            return sum(file.stat().st_size for file in origin.source.files)
        info = load_info(origin.source)
    except (HarnessError, OSError):
        return 0  # its own tests report what is wrong with it
    bits = least_bits(model.quant) if model.quant in FTYPES else None
    return round(info.parameters * (bits or info.bits_per_weight) / 8)


def plan_models(
    ladder: Ladder, order: Mapping[str, int], tested: Iterable[str], shards: int, suites: Iterable[str]
) -> list[dict[str, Any]]:
    """The subjects of a run in the order of their tests, with the shard that each belongs to.

    All subjects of a file are on one shard. Files are weighed by their size times the number of their subjects that
    selected tests are about; without such a test a file weighs nothing.

    Args:
        ladder: all subjects.
        order: place of each subject's tests, by its name.
        tested: names of subjects that selected tests are about.
        shards: number of shards.
        suites: those that may run, for the identities of subjects.
    """
    seen = set(tested)
    files = dict.fromkeys(subject.model for subject in ladder.subjects)
    sizes = {file: planned_bytes(file) for file in files}
    contents = {file: _content(file) for file in files}
    weights = {file.name: 0 for file in files}
    for subject in ladder.subjects:
        weights[subject.model.name] += sizes[subject.model] if subject.name in seen else 0
    chosen = assign(weights, shards)
    identities = {one.name: one for one in identities_of(ladder, set(suites))}
    return [
        {
            "name": subject.name,
            "file": subject.model.name,
            "shard": chosen[subject.model.name],
            "bytes": sizes[subject.model],
            "content": contents[subject.model] | {"adapters": [one.to_json() for one in subject.adapters]},
            "identity": _identity(identities.get(subject.name)),
        }
        for subject in sorted(ladder.subjects, key=lambda subject: order[subject.name])
    ]


def _content(model: PlannedModel) -> dict[str, Any]:
    """What tells a file of a plan from any other: a hash of samples, since whole files are read where they are run."""
    origin = origin_of(model)
    sample = None
    if origin.source is not None:
        try:
            sample = sample_files(origin.source.files)
        except HarnessError:
            sample = None  # its own tests report what is wrong with it
    return {"sample": sample, "quant": model.quant}


def _identity(one: Identity | None) -> dict[str, Any] | None:
    if one is None:
        return None
    family = None if one.family is None else list(one.family)
    return {"quantization": one.quantization, "family": family, "reference": one.reference, "variant": one.variant}


def identities_in(plan: Mapping[str, Any]) -> list[Identity]:
    """Identities of the subjects of a plan, for pairing with a baseline, as a session of the whole has them."""
    return [
        Identity(
            model["name"],
            one["quantization"],
            None if one["family"] is None else tuple(one["family"]),
            one["reference"],
            one["variant"],
        )
        for model in plan["models"]
        if (one := model["identity"]) is not None
    ]


def digest_of(plan: Mapping[str, Any]) -> str:
    """SHA-256 of the content of a plan; the order in which models were given does not count."""
    content = {name: value for name, value in plan.items() if name != "digest"}
    content["models"] = sorted(plan["models"], key=lambda model: str(model["name"]))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


_SINGULAR: Final = frozenset({"of", "harness", "reference", "baseline"})
_SECTIONS: Final = {
    "of": "the number of shards",
    "harness": "the version of gguf-harness",
    "reference": "the reference",
    "models": "the models",
    "settings": "the settings",
    "gates": "the limits",
    "texts": "the texts",
    "suites": "the suites",
    "tests": "the selected tests",
    "baseline": "the baseline",
}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What differs first between two plans, as the end of a sentence: `the settings differ (ctx: 512 and 256)`."""
    for name, called in _SECTIONS.items():
        ours, theirs = (plan.get(name) for plan in (one, other))
        if name == "models":
            ours, theirs = (_by_file(models) for models in (ours, theirs))
        if ours != theirs:
            verb = "differs" if name in _SINGULAR else "differ"
            return f"{called} {verb} ({_told(name, ours, theirs)})"
    return "their plans differ"


def _by_file(models: Sequence[Mapping[str, Any]] | None) -> dict[str, list[Mapping[str, Any]]]:
    """The subjects of each file of a plan, without their shard, which follows from the rest."""
    files: dict[str, list[Mapping[str, Any]]] = {}
    for model in sorted(models or [], key=lambda model: str(model["name"])):
        facts = {name: value for name, value in model.items() if name != "shard"}
        files.setdefault(model["file"], []).append(facts)
    return files


def _told(name: str, ours: Any, theirs: Any) -> str:
    if name == "tests":
        return (
            f"{ours['count']} and {theirs['count']} tests"
            if ours["count"] != theirs["count"]
            else (f"{ours['count']} each, and not the same ones")
        )
    if name in {"baseline", "reference", "of", "harness", "suites"}:
        return f"{_short(ours)} and {_short(theirs)}"
    parts = [
        f"{key}: {_short(ours.get(key))} and {_short(theirs.get(key))}"
        if name != "models"
        else f"{key}: {_of_model(ours.get(key), theirs.get(key))}"
        for key in sorted({*ours, *theirs})
        if ours.get(key) != theirs.get(key)
    ]
    more = f", and {len(parts) - _MOST_NAMES} more" if len(parts) > _MOST_NAMES else ""
    return "; ".join(parts[:_MOST_NAMES]) + more


def _of_model(ours: Sequence[Mapping[str, Any]] | None, theirs: Sequence[Mapping[str, Any]] | None) -> str:
    if ours is None or theirs is None:
        return "in one of them only"
    samples = [{model["content"]["sample"] for model in models} for models in (ours, theirs)]
    return "another file" if samples[0] != samples[1] else "run otherwise"


def _short(value: Any) -> str:
    if isinstance(value, str) and len(value) == len(hashlib.sha256().hexdigest()):
        return value[:12]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return "none" if value is None else text if len(text) <= 80 else f"{text[:80]}…"


def planned_here(run: Mapping[str, Any], planned: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those of the planned gates, or comparisons, that this part of a run has to decide; all, where a run is whole.

    Args:
        run: content of a run.json.
        planned: of the whole.
    """
    shard = run.get("shard")
    if shard is None:
        return list(planned)
    others = {model["name"] for model in shard["plan"]["models"] if model["shard"] != shard["index"]}
    return [one for one in planned if one["model"] not in others]


def shard_words(run: Mapping[str, Any]) -> str | None:
    """`shard 2 of 3`; None for a whole run."""
    shard = run.get("shard")
    return None if shard is None else f"shard {shard['index']} of {shard['of']}"


def part_models(plan: Mapping[str, Any], index: int) -> Sequence[str]:
    """Names of the files of a shard."""
    return list(dict.fromkeys(model["file"] for model in plan["models"] if model["shard"] == index))


def machines_of(run: Mapping[str, Any]) -> dict[str, str]:
    """The machine of each model of a run that was merged from parts of different machines, in words; else empty.

    Timings of one machine are nothing to hold those of another against.
    """
    parts = (run.get("merged") or {}).get("shards", [])
    if all(part["machine"] == parts[0]["machine"] for part in parts):
        return {}
    return {model: machine_words(part) for part in parts for model in part.get("models", [])}


def machine_words(part: Mapping[str, Any]) -> str:
    """`the machine of shard 2 (AMD EPYC 7763, 2 cores)`."""
    machine = part["machine"] or {}
    gpus = [str(gpu.get("name")) for gpu in machine.get("gpus", [])]
    told = ", ".join([str(machine.get("cpu") or "unknown"), f"{machine.get('cores', '?')} cores", *gpus])
    return f"the machine of shard {part['index']} ({told})"
