"""Registration of the options with pytest: names, types, defaults and help.

Loaded in every pytest session of an environment, also those of other projects: it imports only light modules.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from gguf_harness.gguf.types import DEFAULT_QUANTS
from gguf_harness.inputs.option_values import (
    ANY_CLUSTER,
    all_or_at_least,
    at_least,
    depth_list,
    duration,
    head_list,
    parse_layers,
    path_text,
    seconds,
    shard_text,
    size_in_bytes,
)
from gguf_harness.inputs.subject_values import kv_list, kv_types, lora_list, rope_list

if TYPE_CHECKING:
    import pytest

__all__ = [
    "DEFAULT_CACHE_LIMIT",
    "DEFAULT_MODEL",
    "MOST_THREADS",
    "TYPED",
    "add_options",
    "add_short_names",
    "given_options",
    "option_attributes",
    "option_value",
    "short_name",
    "unknown_options",
    "with_full_names",
]

DEFAULT_MODEL: Final = "tiny"
DEFAULT_CACHE_LIMIT: Final = 50 * 10**9
"""In bytes: enough for the distributions of some references and the quantizations of a 7B model."""
MOST_THREADS: Final = 512
"""Most threads that llama.cpp supports (GGML_MAX_N_THREADS)."""
_MOST_TOKENS: Final = 2**24

_SHORT_NAMES: Final = {"--models": "--gguf-models", "--reference": "--gguf-reference"}
"""Short option names and their full names; not used if another plugin or a conftest has an option of the short name."""
_GIVEN: Final = "gguf_given"
TYPED: Final = "GGUF_HARNESS_TYPED"
"""Environment variable with which `gguf-harness run` tells pytest's process what the person typed."""
_OWN: Final = "--gguf-"


class _Given(argparse.Action):
    """Store values as argparse's actions do, and record that the option was given, even with its default value."""

    def __init__(self, *, append: bool = False, **attributes: Any) -> None:
        super().__init__(**attributes)
        self._append = append

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's signature
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        value = True if self.nargs == 0 else values
        # Copies: pytest parses several times, into shallow copies of one namespace.
        if self._append:
            value = [*(getattr(namespace, self.dest, None) or []), value]
        setattr(namespace, self.dest, value)
        setattr(namespace, _GIVEN, [*getattr(namespace, _GIVEN, []), self.dest])


def add_options(parser: pytest.Parser) -> None:
    """Register every option with pytest.

    Not `--models` and `--reference`: a second registration of the same option name ends a pytest session with an error.
    See `with_full_names`.
    """
    group = parser.getgroup("gguf", "gguf-harness: quantized language models")
    for name, attributes in option_attributes().items():
        group.addoption(name, **_argparse_attributes(attributes))


def _argparse_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Attributes of an option, with argparse's action replaced by our own."""
    extra: dict[str | None, dict[str, Any]] = {"append": {"append": True}, "store_true": {"nargs": 0}}
    return {**attributes, "action": _Given, **extra.get(attributes.get("action"), {})}


def _dest(name: str) -> str:
    return name.removeprefix("--").replace("-", "_")


def with_full_names(parser: pytest.Parser, arguments: Sequence[str], namespace: argparse.Namespace) -> list[str]:
    """Replace `--models` and `--reference` in the arguments by the full option names.

    A name that another plugin or a conftest has registered is left unchanged.

    Args:
        parser: with the options registered so far.
        arguments: of pytest.
        namespace: with the defaults of options; not modified.
    """
    ours = _free_names(parser, arguments, namespace)
    if not ours:
        return list(arguments)
    # A file of arguments (`@file`) may contain them: it is replaced by its content.
    words = list(parser.optparser._read_args_from_files(list(arguments)))  # noqa: SLF001 - as argparse reads it
    end = words.index("--") if "--" in words else len(words)
    return [_full_name(word, ours) for word in words[:end]] + words[end:]


def add_short_names(parser: pytest.Parser, arguments: Sequence[str], namespace: argparse.Namespace) -> None:
    """Register `--models` and `--reference` if they were given and nobody else has registered them.

    For a plugin that is loaded too late for `with_full_names`. Same arguments.
    """
    group = parser.getgroup("gguf")
    for name in sorted(_free_names(parser, arguments, namespace)):
        full = _SHORT_NAMES[name]
        attributes = _argparse_attributes(option_attributes()[full])
        group.addoption(name, **attributes | {"dest": _dest(full), "help": f"short for {full}"})


def _free_names(parser: pytest.Parser, arguments: Sequence[str], namespace: argparse.Namespace) -> set[str]:
    """Short names that were given and that nobody else has registered."""
    if not any(word.partition("=")[0] in _SHORT_NAMES or word.startswith("@") for word in arguments):
        return set()  # true in nearly all sessions: skip the parsing
    # Build pytest's parser from what is registered so far. Its list of unknown arguments is not usable: it takes an
    # option whose value contains a space for a path.
    parser.parse_known_and_unknown_args([], namespace=copy.copy(namespace))
    words = parser.optparser._read_args_from_files(list(arguments))  # noqa: SLF001 - as argparse reads it
    given = {word.partition("=")[0] for word in words} & _SHORT_NAMES.keys()
    return given - parser.optparser._option_string_actions.keys()  # noqa: SLF001


def _full_name(word: str, names: set[str]) -> str:
    name, equals, value = word.partition("=")
    return f"{_SHORT_NAMES[name]}{equals}{value}" if name in names else word


def short_name(name: str) -> str:
    """The short name of an option: `--models` for `--gguf-models`."""
    return next((short for short, full in _SHORT_NAMES.items() if full == name), name)


def unknown_options(words: Sequence[str], *, also_short: bool) -> str | None:
    """A message about an option that looks like one of ours and is none, with the one that was probably meant.

    Args:
        words: of a command line.
        also_short: whether names close to `--models` and `--reference` are meant for us, too; otherwise only those that
            begin with `--gguf-`.
    """
    end = words.index("--") if "--" in words else len(words)
    names = [name for word in words[:end] if (name := word.partition("=")[0]).startswith("--" if also_short else _OWN)]
    if not names:
        return None  # in most sessions
    import difflib

    known = [*option_attributes(), *_SHORT_NAMES]
    for name in names:
        # Nearly the same only, and no name that may be somebody else's.
        short = difflib.get_close_matches(name, _SHORT_NAMES, n=1, cutoff=0.85) if also_short else []
        if name not in known and (short or name.startswith(_OWN)):
            close = short or difflib.get_close_matches(name, known, n=1)
            advice = f"Did you mean {close[0]}?" if close else "`gguf-harness run --help` lists them."
            return f"There is no option {name}.\n  {advice}"
    return None


def option_value(config: pytest.Config, name: str) -> Any:
    """The value of an option, including one that a conftest has set under its short name."""
    value, short = config.getoption(name), short_name(name)
    if short == name:
        return value
    try:
        config.getoption(short)
    except ValueError:
        return getattr(config.option, _dest(short), value)
    return value  # the short name belongs to another plugin


def given_options(config: pytest.Config) -> list[str]:
    """Options that were given, or whose value differs from the default, whatever the source.

    Sources: the command line, PYTEST_ADDOPTS, `@file`, `addopts` in an ini file, a conftest.
    """
    given = getattr(config.option, _GIVEN, [])
    return [
        name
        for name, attributes in option_attributes().items()
        if option_value(config, name) != attributes["default"] or _dest(name) in given
    ]


def option_attributes() -> dict[str, dict[str, Any]]:
    """Every option by name, with argparse's attributes; actions have their argparse names."""
    known: dict[str, dict[str, Any]] = {}
    for add_some in (_add_what_is_measured, _add_what_comes_of_it):
        add_some(lambda name, **attributes: known.update({name: attributes}))
    return known


def _add_what_is_measured(add: Callable[..., None]) -> None:
    """Call `add` for each option of models, texts and how they are run, with argparse's attributes."""
    add("--gguf-models", action="append", metavar="SPEC[,SPEC...]", default=None,
        help="models under test: paths, globs, folders, aliases (tiny, smollm2-135m), hf:org/repo:file-or-quant; "
        f"repeatable; short: --models (default: {DEFAULT_MODEL}, with --gguf-quants=default)")  # fmt: skip
    add("--gguf-reference", metavar="SPEC", default=None,
        help="model to compare candidates with; short: --reference "
        "(default: the most precise one of --gguf-models)")  # fmt: skip
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
        help="which windows of the text are measured: a fixed random sample, which longer runs extend, or the first "
        "ones, as in llama-perplexity (default: sampled)")  # fmt: skip
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
    add("--gguf-kv", metavar="K/V[,K/V...]|default", type=kv_list, default=(),
        help="types of the KV cache to run each model with, a candidate for each pair, such as f16/f16,q8_0/q4_0; "
        "q4_0/q4_0+norot: without llama.cpp's rotation of quantized K and V; `default` is a grid of f16, q8_0 and q4_0 "
        "on the reference, and q8_0/q8_0 and q4_0/q4_0 on the first and the last candidate (default: f16/f16, and "
        "`default` in suites/kv)")  # fmt: skip
    add("--gguf-kv-reference", metavar="K/V", type=kv_types, default=None,
        help="types of the cache that suites/kv compares the others with (default: f16/f16)")  # fmt: skip
    add("--gguf-rope", metavar="SCALING[,SCALING...]", type=rope_list, default=(),
        help="how to scale positions, a candidate of each model for each: none, linear:FACTOR, yarn:FACTOR "
        "(default: as the model's file says)")  # fmt: skip
    add("--gguf-lora", metavar="FILE[:SCALE][,...]", type=lora_list, default=(),
        help="LoRA adapters of suites/lora, in GGUF; a.gguf:0.5 is applied at half its strength, a.gguf+b.gguf are "
        "applied together (default: for tiny the one that comes along)")  # fmt: skip
    add("--gguf-lora-corpus", metavar="FILE", type=path_text, default=None,
        help="text of the adapters' own kind, which they were not trained on (default: that of the adapter that comes "
        "along)")  # fmt: skip
    add("--gguf-depths", metavar="TOKENS[,...]", type=depth_list, default=(),
        help="tokens in the KV cache before those of the speed tests of suites/kv, llama-bench's -d (default: half of "
        "--gguf-ctx)")  # fmt: skip
    add("--gguf-haystacks", metavar="N", type=at_least(1), default=1,
        help="texts that each fact of suites/kv is hidden in (default: 1)")  # fmt: skip
    add("--gguf-gpu", metavar="INDEX", type=at_least(-1), default=0,
        help="NVIDIA GPU for llama.cpp, -1 for none; ignored without a GPU (default: 0)")  # fmt: skip
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
    add("--gguf-side-by-side", choices=("auto", "always", "never"), default="auto",
        help="decode a candidate and its reference in step, so that no log-probabilities are stored; auto: where "
        "they would take more than --gguf-logprobs-limit or --gguf-cache-limit allows (default: auto)")  # fmt: skip
    add("--gguf-cache-limit", metavar="SIZE", type=size_in_bytes, default=DEFAULT_CACHE_LIMIT,
        help="most disk space for the whole cache; the least recently used entries are removed first (default: "
            "50G)")  # fmt: skip
    add("--gguf-timeout", metavar="SECONDS", type=seconds, default=1800.0,
        help="longest silence of a worker process before it is stopped (default: 1800)")  # fmt: skip
    add("--gguf-ray", metavar="ADDRESS", nargs="?", const=ANY_CLUSTER, default=None,
        help="measure on the nodes of a Ray cluster, in as many actors as pytest -n has processes: host:port, auto, or "
        "local to start one; without an address RAY_ADDRESS, the cluster of this machine, or a new one "
        "(default: measure on this machine)")  # fmt: skip
    add("--gguf-ray-runtime-env", metavar="FILE", type=path_text, default=None,
        help="runtime environment for Ray, in YAML or JSON, as for `ray job submit` (default: none)")  # fmt: skip


def _add_what_comes_of_it(add: Callable[..., None]) -> None:
    """The same for those of gates, baselines and the single suites."""
    add("--gguf-gates", metavar="FILE", type=path_text, default=None,
        help="TOML file whose limits replace the built-in ones (default: none)")  # fmt: skip
    add("--gguf-inconclusive", choices=("warn", "fail"), default="warn",
        help="what happens to a test whose gate is inconclusive (default: warn)")  # fmt: skip
    add("--gguf-holm", action="store_true", default=False,
        help="decide gates together, by Holm's correction over all of the run: their tests fail at its end "
        "(default: off, each gate by itself)")  # fmt: skip
    add("--gguf-until-decided", action="store_true", default=False,
        help="stop a candidate's pass over the corpus when one of its gates has failed or all are decided, with tests "
        "that allow for it; --gguf-chunks is the most (default: off, all windows)")  # fmt: skip
    add("--gguf-baseline", metavar="NAME|FILE", default=None,
        help="fail candidates that are worse than this baseline says they were (default: none)")  # fmt: skip
    add("--gguf-baseline-map", action="append", metavar="OLD=NEW[,OLD=NEW...]", default=None,
        help="model of the baseline and the one of this run to compare with it, where names, types and families do not "
        "tell; repeatable (default: the same name, or else the only one of the same type and family)")  # fmt: skip
    add("--gguf-save-baseline", metavar="NAME", default=None,
        help="save what this run measures as results/baselines/NAME.json (default: off)")  # fmt: skip
    add("--gguf-shard", metavar="I/N", type=shard_text, default=None,
        help="measure part I of N of the run, counted from 1: each model file belongs to one part, tests of no model "
        "to the first; every part runs the same command, and decodes the reference for itself unless they share a "
        "cache; `gguf-harness merge` makes one run of them (default: off, everything)")  # fmt: skip
    add("--gguf-fresh", action="store_true", default=False,
        help="measure again even where the cache has the result (default: off)")  # fmt: skip
    add("--gguf-budget", metavar="TIME", type=duration, default=None,
        help="longest time that the session may take, such as 10m, 90s or 1h30m: fewer windows, heads, prompts, "
        "candidates and variants of files are measured where it is too short for all, and the report says which; "
        "numbers that are given stay as they are (default: no limit)")  # fmt: skip
    add("--gguf-sensitivity", metavar="N|all", type=all_or_at_least(0), default=2,
        help="number of candidates, the smallest, to decode with only one group of tensors quantized at a time, and "
        "with one restored (default: 2)")  # fmt: skip
    add("--gguf-head-windows", metavar="N", type=at_least(2), default=4,
        help="windows of 96 tokens, spread over the corpus, on which heads are ablated (default: 4)")  # fmt: skip
    add("--gguf-head-limit", metavar="N|all", type=all_or_at_least(2), default=64,
        help="most heads of a model that are ablated one by one; of more, those that cost most when they "
        "are ablated on two windows (default: 64)")  # fmt: skip
    add("--gguf-analytics-gpu", metavar="INDEX", type=at_least(-1), default=None,
        help="NVIDIA GPU for analyses of activations and embeddings, -1 for none; used where cuML is installed "
        "(default: the second, or else the first)")  # fmt: skip
    add("--gguf-heads", metavar="HEADS", type=head_list, default=None,
        help="heads of these layers whose patterns the report shows, counted from 0, such as 0-3,7 "
        "(default: all)")  # fmt: skip
    add("--gguf-layers", metavar="LAYERS", type=parse_layers, default=None,
        help="layers to look into, counted from 0, such as 0-3,7 (default: all)")  # fmt: skip
