"""Ray clusters on this machine whose nodes share nothing: each keeps its files in a folder of its own."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from gguf_harness.cluster.node_files import NODE_CACHE

ROOT = Path(__file__).parent.parent
_STORE_BYTES = 100 * 2**20

# Python imports a module of this name when it starts: where a variable asks for it, processes of a node cannot write
# files beyond a size, as on a disk that is full. Ray's own processes write none that large.
_CUSTOMIZE = """
import os, resource, signal, sys
if (most := os.environ.get("TESTS_LARGEST_FILE")) is not None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(most), int(most)))
"""


@dataclass
class Nodes:
    """A cluster.

    Attributes:
        address: host and port.
        folders: the cache of each node, by name.
    """

    cluster: Any
    folder: Path
    folders: dict[str, Path] = field(default_factory=dict)
    _nodes: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, name: str, cpus: int = 2, largest_file: int | None = None) -> None:
        """A node; with `largest_file`, one that can write no larger ones."""
        self.folders[name] = self.folder / name
        environment = {NODE_CACHE: str(self.folders[name])}
        if largest_file is not None:
            environment["TESTS_LARGEST_FILE"] = str(largest_file)
        memory = 8 * 2**30
        with _environment(environment):
            self._nodes[name] = self.cluster.add_node(
                num_cpus=cpus, object_store_memory=_STORE_BYTES, memory=memory, include_dashboard=False
            )

    def remove(self, name: str) -> None:
        """Lose a node, as when a machine is switched off."""
        self.cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def measuring(self, name: str, label: str) -> psutil.Process | None:
        """The process of a worker on a node, told by its log; None while there is none."""
        log = self.folders[name] / "logs" / f"{label}.log"
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if "w.serve(" in " ".join(process.cmdline()) and Path(f"/proc/{process.pid}/fd/1").readlink() == log:
                    return process
        return None


@contextmanager
def ray_nodes(folder: Path, **cpus: int) -> Iterator[Nodes]:
    """A cluster with a head that measures nothing, and nodes with these numbers of processors."""
    from ray.cluster_utils import Cluster

    (folder / "sitecustomize.py").write_text(_CUSTOMIZE)
    paths = [str(folder), str(ROOT / "harness"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    with _environment({"PYTHONPATH": os.pathsep.join(filter(None, paths)), "RAY_DISABLE_IMPORT_WARNING": "1"}):
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, object_store_memory=_STORE_BYTES, include_dashboard=False)
            nodes = Nodes(cluster, folder)
            for name, count in cpus.items():
                nodes.add(name, count)
            yield nodes
        finally:
            cluster.shutdown()  # type: ignore[no-untyped-call]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """The first true value of a condition."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
