"""Finding a Ray cluster, connecting to it without noise, and looking at its nodes before work starts."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness import __version__
from gguf_harness.cluster.address import check_address
from gguf_harness.errors import OptionError, require_extra

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from gguf_harness.cluster.host import HostSetup

__all__ = ["Cluster", "Needs", "alive_nodes", "describe_difference", "disconnect", "join", "start"]

_NOTED: Final = Path("ray") / "ray_current_cluster"
"""Where `ray start` notes the address of the cluster that it has started, in the temporary folder."""
_CONNECT_S: Final = 3.0
_PROBE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What an actor takes of a node, besides memory."""

    cpus: int
    gpus: int

    def __str__(self) -> str:
        """As in a sentence: `4 CPUs and a GPU`."""
        cpus = f"{self.cpus} CPU{'s' if self.cpus > 1 else ''}"
        return f"{cpus} and a GPU" if self.gpus else cpus


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that was looked at.

    Attributes:
        address: host and port.
        needs: what an actor takes of a node, besides memory.
        engine: description of llama.cpp on its nodes, and the key of it that all of them share.
        nodes: ids of those that were looked at and have it.
        refused: ids of those that have another one, or none.
        left_out: a sentence about each of these.
    """

    address: str
    needs: Needs
    engine: dict[str, Any]
    nodes: tuple[str, ...]
    refused: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def has_node_for(self, memory: int, avoided: AbstractSet[str]) -> bool:
        """Whether some node could do it when nothing else runs there."""
        return any(
            _has(node, self.needs) and node["Resources"].get("memory", 0) >= memory
            for node in alive_nodes()
            if node["NodeID"] not in avoided
        )

    def to_text(self) -> str:
        """For another process of this session."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> Cluster:
        """What `to_text` gave."""
        values = json.loads(text)
        lists = {name: tuple(values[name]) for name in ("nodes", "refused", "left_out")}
        return cls(values["address"], Needs(**values["needs"]), values["engine"], **lists)


def alive_nodes() -> list[dict[str, Any]]:
    """Nodes of the cluster that this process is connected to, as `ray.nodes` gives them."""
    import ray

    return [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def _has(node: dict[str, Any], needs: Needs) -> bool:
    resources = node["Resources"]
    return bool(resources.get("CPU", 0) >= needs.cpus and resources.get("GPU", 0) >= needs.gpus)


def start(asked: str | None, needs: Needs, setup: HostSetup, runtime_env: dict[str, Any] | None) -> Cluster:
    """Connect to the cluster that was asked for, or start one on this machine, and look at its nodes.

    Args:
        asked: address of --gguf-ray; None for RAY_ADDRESS, the cluster of this machine, or a new one.
        needs: what an actor takes; a GPU only if there is one in the cluster.
        setup: for the hosts that look at nodes.
        runtime_env: as for `ray.init`.

    Raises:
        OptionError: no cluster answers, or none of its nodes can do it.
        MissingExtra: Ray is not installed.
    """
    require_extra("ray", "--gguf-ray", "ray")
    _init(_resolve(asked), runtime_env)
    try:
        return _looked_at(needs, setup)
    except BaseException:
        disconnect()
        raise


def join(cluster: Cluster, runtime_env: dict[str, Any] | None) -> None:
    """Connect another process of the session.

    Raises:
        OptionError: the cluster no longer answers.
    """
    _init(cluster.address, runtime_env)


def disconnect() -> None:
    """Leave the cluster; one that this process has started ends."""
    import ray

    with contextlib.suppress(Exception), _quietly():
        ray.shutdown()


def _resolve(asked: str | None) -> str | None:
    """The address to connect to; None to start a cluster."""
    name, address = "--gguf-ray", asked
    if asked is None and (known := os.environ.get("RAY_ADDRESS")):
        name = "RAY_ADDRESS"
        address = check_address(known, name)
    if address == "local":
        return None
    if address is None or address == "auto":
        running = _running()
        if running is None and address is not None:
            raise OptionError(
                f"{name}=auto: no Ray cluster runs on this machine.",
                "Start one with `ray start --head`, or give host:port.",
            )
        return running
    if not _answers(address):
        raise OptionError(
            f"{name}={address}: no Ray cluster answers there.",
            "Give host:port of the head node's GCS, 6379 unless it was started with another --port.",
        )
    return address


def _running() -> str | None:
    """The cluster that was last started on this machine, if it still answers."""
    for folder in dict.fromkeys((os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp")):  # noqa: S108 - Ray's own
        with contextlib.suppress(OSError, ValueError):
            address = (Path(folder or "/") / _NOTED).read_text(encoding="utf-8").strip()
            if _answers(address):
                return address
    return None


def _answers(address: str) -> bool:
    """Whether something listens at an address. Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_S):
            return True
    except (OSError, ValueError):
        return False


def _init(address: str | None, runtime_env: dict[str, Any] | None) -> None:
    import ray

    # What a node reports of workers that died: the session says so itself where it matters.
    ray._private.worker._worker_logs_enabled = False  # noqa: SLF001 - there is no public way
    about: dict[str, Any] = {"address": address or "local"}
    if address is None:
        about |= {"include_dashboard": False}
        # A cluster of a test session tells nobody about itself.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with _quietly():
            ray.init(
                **about,
                runtime_env=runtime_env,
                namespace=f"gguf-harness-{secrets.token_hex(4)}",
                configure_logging=False,
                log_to_driver=False,
            )
    except (OSError, RuntimeError, ValueError, TypeError, ray.exceptions.RayError) as error:
        done = "joined" if address else "started"
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OptionError(
            f"The Ray cluster {address or 'on this machine'} could not be {done}: {first}",
            "Check --gguf-ray and --gguf-ray-runtime-env; `ray status` says how a cluster is.",
        ) from None


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep Ray's remarks off the terminal, and its handler of SIGTERM away from the session."""
    import logging

    logger = logging.getLogger("ray")
    level, main = logger.level, threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main else None
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(max(level, logging.ERROR))
        if main and handler is not None:
            signal.signal(signal.SIGTERM, handler)


# -- nodes ----------------------------------------------------------------------------------------------------------


def _looked_at(needs: Needs, setup: HostSetup) -> Cluster:
    """The cluster with those of its nodes that can do it and compute the same."""
    import ray

    nodes = alive_nodes()
    if not any(node["Resources"].get("GPU", 0) for node in nodes):
        needs = replace(needs, gpus=0)
    large = [node for node in nodes if _has(node, needs)]
    if not large:
        most = max((node["Resources"].get("CPU", 0) for node in nodes), default=0)
        gpus = sum(node["Resources"].get("GPU", 0) for node in nodes)
        raise OptionError(
            f"No node of the Ray cluster has {needs}: the largest has {most:g} CPUs, and all have {gpus:g} GPUs.",
            "Give --gguf-threads, and --gguf-gpu-layers=0 for nodes without a GPU.",
        )
    found = _probe(large, replace(setup, gpu=needs.gpus > 0, looking=True))
    keys: dict[str, list[str]] = {}
    for node, answer in found.items():
        if isinstance(answer, dict):
            keys.setdefault(json.dumps(answer["key"], sort_keys=True), []).append(node)
    if not keys:
        reasons = "\n".join(f"    node {node[:8]}: {answer}" for node, answer in found.items())
        raise OptionError(
            "No node of the Ray cluster can measure.", f"Install gguf-harness {__version__} on its nodes:\n{reasons}"
        )
    cpus = {node["NodeID"]: node["Resources"]["CPU"] for node in large}
    # Numbers of unlike builds or processors are not the same: the larger part of the cluster measures.
    chosen = max(keys, key=lambda key: (sum(cpus[node] for node in keys[key]), key))
    engine = found[keys[chosen][0]]
    if not isinstance(engine, dict):
        raise TypeError
    refused = [node for node in found if node not in keys[chosen]]
    told = [
        f"The Ray node {node[:8]} was left out: "
        + (
            answer
            if isinstance(answer := found[node], str)
            else describe_difference(engine["key"], answer["key"]) or ""
        )
        + "."
        for node in refused
    ]
    address: str = ray.get_runtime_context().gcs_address
    return Cluster(address, needs, engine, tuple(keys[chosen]), tuple(refused), tuple(told))


def _probe(nodes: list[dict[str, Any]], setup: HostSetup) -> dict[str, dict[str, Any] | str]:
    """By node, what its llama.cpp is, or why nothing can be measured there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from gguf_harness.cluster.host import Host

    host: Any = ray.remote(Host)
    asked: dict[str, tuple[Any, Any, Any]] = {}
    for node in nodes:
        name = node["NodeID"]
        there = NodeAffinitySchedulingStrategy(name, soft=False)
        actor = host.options(num_cpus=0, scheduling_strategy=there).remote(setup)
        asked[name] = actor, actor.about.remote(), actor.engine.remote()
    ray.wait([engine for *_, engine in asked.values()], num_returns=len(asked), timeout=_PROBE_S)
    found: dict[str, dict[str, Any] | str] = {}
    for name, (actor, about, engine) in asked.items():
        try:
            version = ray.get(about, timeout=0)["harness"]
            found[name] = (
                ray.get(engine, timeout=0)
                if version == __version__
                else f"it has gguf-harness {version}, the session {__version__}"
            )
        except ray.exceptions.GetTimeoutError:
            found[name] = f"it did not answer within {_PROBE_S:g} s"
        except ray.exceptions.RayError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            found[name] = lines[-1].rstrip(".")
        with contextlib.suppress(Exception):
            ray.kill(actor)
    return found


_PARTS: Final = {
    "versions": "another version of llama.cpp",
    "build": "another build of llama.cpp",
    "instructions": "a processor with other instruction sets",
    "devices": "other GPUs",
    "driver": "another GPU driver",
    "environment": "other GGML_ variables in its environment",
}


def describe_difference(key: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Why numbers of two nodes would not be the same, as a part of a sentence; None if they are."""
    differing = [said for part, said in _PARTS.items() if key.get(part) != other.get(part)]
    if not differing:
        return None
    return f"it has {' and '.join(differing)}, and numbers would not be comparable"
