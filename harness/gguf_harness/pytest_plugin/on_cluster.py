"""The Ray cluster of a session (`--gguf-ray`): found once, joined by each process that measures."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gguf_harness.cluster.actors import Actors
from gguf_harness.cluster.connection import Cluster, Needs, disconnect, join, start
from gguf_harness.cluster.host import HostSetup
from gguf_harness.engine.worker_tasks import ggml_environment
from gguf_harness.errors import OptionError
from gguf_harness.inputs.option_values import ANY_CLUSTER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gguf_harness.pytest_plugin.state import State

__all__ = ["end_cluster", "join_cluster", "start_cluster"]


def start_cluster(state: State) -> None:
    """Find the cluster, or start one, and look at its nodes before any work starts.

    Raises:
        OptionError: there is none, or none of its nodes can measure.
    """
    options = state.options
    setup = HostSetup(
        state.run_id, options.cache, ("", b""), options.cache_limit, False, options.timeout_s, ggml_environment()
    )
    # Without a GPU for them, layers stay on processors.
    needs = Needs(options.threads, 1 if options.gpu >= 0 and options.gpu_layers != 0 else 0)
    asked = None if options.ray == ANY_CLUSTER else options.ray
    state.cluster = start(asked, needs, setup, _runtime_env(options.ray_runtime_env))


def join_cluster(state: State, warn: Callable[[str], None]) -> Actors:
    """The actors of this process, in a session with --gguf-ray.

    Raises:
        OptionError: the cluster is gone.
    """
    options, told = state.options, getattr(state.config, "workerinput", {}).get("gguf_cluster")
    if state.cluster is None:
        cluster = Cluster.from_text(str(told))
        join(cluster, _runtime_env(options.ray_runtime_env))
        state.cluster = cluster
    for sentence in state.cluster.left_out:
        warn(sentence)
    return Actors(
        state.cluster,
        options.cache,
        session=state.run_id,
        cache_limit=options.cache_limit,
        timeout_s=options.timeout_s,
        warn=warn,
    )


def end_cluster(state: State) -> None:
    """Leave the cluster."""
    state.cluster = None
    disconnect()


def _runtime_env(file: Path | None) -> dict[str, Any] | None:
    """The runtime environment in a file.

    Raises:
        OptionError: it holds none.
    """
    if file is None:
        return None
    import yaml  # comes with Ray

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise OptionError(f"--gguf-ray-runtime-env={file} cannot be read: {error}.", "Write YAML or JSON.") from None
    if not isinstance(content, dict):
        raise OptionError(
            f"--gguf-ray-runtime-env={file} holds {json.dumps(content)[:60]}, expected a table.",
            'Such as {"env_vars": {"NAME": "value"}}; Ray\'s documentation has the fields.',
        )
    return content
