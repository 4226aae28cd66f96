"""The session's side of Ray: one actor at a time in each process, in which its workers run.

A process calls one task at a time, so one place in the cluster is enough for it. How many measurements run at once is
how many processes there are (`pytest -n`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_harness import __version__
from gguf_harness.cluster.connection import Cluster, alive_nodes, describe_difference
from gguf_harness.cluster.host import Host, HostSetup, Missing, Progress, Settled
from gguf_harness.cluster.parcels import Damaged, Parcel, Piece, SentFile, SessionFiles
from gguf_harness.engine.worker_tasks import ggml_environment
from gguf_harness.errors import EngineCrashed, EngineError, HarnessError, write_error
from gguf_harness.store.atomic_file import replacing

if TYPE_CHECKING:
    from gguf_harness.engine.worker import ProgressCallback

__all__ = ["Actors"]

_BLOCK: Final = 32 * 2**20
"""Bytes of a file that travel at once; two blocks are on their way."""
_RETRIES: Final = 2
_MARGIN: Final = 512 * 2**20
_HEADROOM: Final = 1.25
"""Memory of an actor: 1.25 times the files of its models (caches, compute buffers) and 512 MiB for the processes."""
_LOOK_EVERY_S: Final = 1.0
_NEW_NODE_S: Final = 20.0
"""How long to wait for a node when none is left that could do: another may be on its way."""
_NOTICE_S: Final = 0.3
_ENVIRONMENT: Final = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class _Lost(Exception):
    """The call did not end: its actor or node is gone, or the node could not do it.

    Args:
        reason: a sentence without its full stop.
        of_node: whether the node is to be avoided from now on.
    """

    def __init__(self, reason: str, *, of_node: bool = False) -> None:
        super().__init__(reason)
        self.of_node = of_node


class Actors:
    """The actor of this process, and what is known about nodes.

    Args:
        cluster: that this process is connected to.
        cache: the session's cache.
        session: name that all processes of a session share.
        cache_limit: most bytes of a node's cache.
        timeout_s: as for `engine.worker.Worker`.
        warn: called with a sentence about a node that is left out.
    """

    def __init__(
        self,
        cluster: Cluster,
        cache: Path,
        *,
        session: str,
        cache_limit: int,
        timeout_s: float,
        warn: Callable[[str], None],
    ) -> None:
        self.cluster = cluster
        self._needs = cluster.needs
        self._files = SessionFiles(cache)
        self._warn = warn
        # Whoever sees this file with this content sees the same folder.
        self._token = f".seen-by-{os.getpid()}-{secrets.token_hex(4)}"
        content = secrets.token_bytes(16)
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with replacing(cache / self._token, lasting=False) as stream:
                stream.write(content)
        except OSError as error:
            raise write_error(cache, error) from error
        passed = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        environment = passed | ggml_environment()
        token = (self._token, content)
        self._setup = HostSetup(session, cache, token, cache_limit, cluster.needs.gpus > 0, timeout_s, environment)
        self._class: Any = None
        self._actor: Any = None
        self._node = ""
        self._same_cache = False
        self._memory = 0
        self._open: dict[str, int] = {}
        self._avoided: set[str] = set(cluster.refused)
        self._checked: set[str] = set(cluster.nodes)
        self._used: dict[str, dict[str, Any]] = {}
        self._full_since: float | None = None

    @property
    def used(self) -> list[dict[str, Any]]:
        """Machines that have measured something, and how many calls each has done: for the run."""
        return list(self._used.values())

    # -- workers ----------------------------------------------------------------------------------------------------

    def opened(self, label: str, files_bytes: int) -> None:
        """Note that a worker exists, and how large its model's files are."""
        self._open[label] = files_bytes

    def closed(self, label: str) -> None:
        """Stop a worker; never fails."""
        if self._open.pop(label, None) is None or self._actor is None:
            return
        with contextlib.suppress(Exception):
            self._actor.close.remote(label)

    def call(self, label: str, progress: ProgressCallback | None, task: tuple[Any, Any, Any]) -> Any:
        """Run a task in the worker of a label, and bring what it wrote into the session's cache.

        Raises:
            EngineCrashed: llama.cpp crashed, or the call was lost several times.
            HarnessError: the error of the task.
        """
        losses: list[str] = []
        while True:
            try:
                settled = self._try(label, progress, task)
            except _Lost as lost:
                node, self._node = self._node, ""
                self.close()
                losses.append(f"{lost}")
                if lost.of_node and node:
                    self._avoided.add(node)
                if len(losses) > _RETRIES:
                    tried = "\n".join(f"    {loss}" for loss in losses)
                    raise EngineCrashed(
                        f"{label}: its measurement was lost {len(losses)} times on the Ray cluster.",
                        f"Each time:\n{tried}",
                    ) from None
            except BaseException:
                # Ctrl-C, a time limit of pytest: the actor may still answer, and nobody would take it for this call.
                self.close()
                raise
            else:
                break
        result = self._files.unpack(settled.data)
        if settled.kind == "error":
            raise result
        return result

    def _try(self, label: str, progress: ProgressCallback | None, task: tuple[Any, Any, Any]) -> Settled:
        import ray

        try:
            actor = self._placed()
            settled = self._run(actor, label, progress, self._files.pack(task, to_same_cache=self._same_cache))
            if settled.of_node:
                raise _Lost(f"{self._name()}: {self._files.unpack(settled.data)}", of_node=True)
            self._take(actor, settled)
        except ray.exceptions.RayTaskError as error:
            # What a task raises comes as a value: this is about our own code on the node, or its installation.
            raise EngineError(
                f"{label}: the Ray actor on {self._name()} failed: {error.cause}.",
                "Look whether this node has the same packages as the session.",
            ) from None
        except (ray.exceptions.RayError, Damaged) as error:
            raise _Lost(f"{self._name()}: {_first_line(error)}") from None
        machine = self._used[self._node]
        machine["calls"] += 1
        return settled

    def _run(self, actor: Any, label: str, progress: ProgressCallback | None, parcel: Parcel) -> Settled:
        import ray

        for _ in range(_RETRIES + 1):
            missing: Missing | None = None
            for reference in actor.run.options(num_returns="streaming").remote(label, parcel):
                answer = ray.get(reference)
                if isinstance(answer, Settled):
                    return answer
                if isinstance(answer, Missing):
                    missing = answer
                elif isinstance(answer, Progress) and progress is not None:
                    progress(answer.done, answer.total)
            if missing is None:
                raise _Lost(f"{self._name()}: the actor ended without an answer")
            for what in missing.what:
                self._send(actor, what)
        raise _Lost(f"{self._name()}: files that were sent are gone again: its cache is too small", of_node=True)

    # -- files ------------------------------------------------------------------------------------------------------

    def _send(self, actor: Any, what: SentFile | Piece) -> None:
        import ray

        path = Path(what.path) if isinstance(what, SentFile) else self._files.cache / what.place
        needed, problem = ray.get(actor.expect.remote(what))
        under_way: list[Any] = []
        if needed:
            for block in _blocks(path):
                if len(under_way) > 1:
                    problem = problem or ray.get(under_way.pop(0))
                if problem:
                    break
                under_way.append(actor.block.remote(block))
            problem = problem or next(filter(None, ray.get(under_way)), None) or ray.get(actor.end.remote())
        if problem:
            raise _Lost(f"{self._name()}: {problem}", of_node=True)

    def _take(self, actor: Any, settled: Settled) -> None:
        """Bring what a task has written into the session's cache: all of it, or nothing."""
        changes = settled.changes
        if changes.written or changes.gone:
            pieces = [(piece, self._fetched(actor, piece)) for piece in changes.written]
            self._files.take(pieces, list(changes.gone))

    def _fetched(self, actor: Any, piece: Piece) -> Iterator[bytes]:
        import ray

        ahead: list[Any] = []
        for offset in range(0, piece.size, _BLOCK):
            ahead.append(actor.read.remote(piece.place, offset, min(_BLOCK, piece.size - offset)))
            if len(ahead) > 1:
                yield ray.get(ahead.pop(0))
        for reference in ahead:
            yield ray.get(reference)

    # -- the actor --------------------------------------------------------------------------------------------------

    def _placed(self) -> Any:
        """The actor, with room for the models of all open workers."""
        needed = int(_HEADROOM * sum(self._open.values())) + _MARGIN
        if self._actor is not None and not needed <= self._memory <= 2 * needed:
            self.close()
        while True:
            if self._actor is None:
                self._start(needed)
            if self._is_sound():
                return self._actor
            self._avoided.add(self._node)
            self.close()

    def _start(self, memory: int) -> None:
        import ray

        options: dict[str, Any] = {
            "num_cpus": self._needs.cpus,
            "num_gpus": self._needs.gpus,
            "memory": memory,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
        }
        avoided = self._avoided & {node["NodeID"] for node in alive_nodes()}
        if avoided:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(avoided))})"}
        self._memory, self._node = memory, ""
        self._class = self._class or ray.remote(Host)
        self._actor = self._class.options(**options).remote(self._setup)
        reference = self._actor.about.remote()
        impossible_since: float | None = None
        while not ray.wait([reference], timeout=_LOOK_EVERY_S)[0]:
            possible = self.cluster.has_node_for(memory, self._avoided)
            impossible_since = None if possible else impossible_since or time.monotonic()
            if impossible_since is not None and time.monotonic() - impossible_since > _NEW_NODE_S:
                self.close()
                raise EngineError(
                    f"No node of the Ray cluster has {self._needs} and {memory / 2**30:.1f} GiB of memory"
                    + (f"; {len(avoided)} were left out." if avoided else "."),
                    "Add one, or run without --gguf-ray. Warnings of the run say why a node is left out.",
                )
        about = ray.get(reference)
        self._node, self._same_cache = about["node"], about["same_cache"]
        known = {"node": self._node[:8], **about["machine"], "harness": about["harness"], "calls": 0}
        self._used.setdefault(self._node, known)

    def _is_sound(self) -> bool:
        """Whether the node of the actor computes what the others do; asked once for each node."""
        import ray

        if self._node in self._checked:
            return True
        harness = self._used[self._node]["harness"]
        problem: str | None
        if harness != __version__:
            problem = f"it has gguf-harness {harness}, the session {__version__}"
        else:
            problem = describe_difference(self.cluster.engine["key"], ray.get(self._actor.engine.remote())["key"])
        if problem is None:
            self._checked.add(self._node)
            return True
        self._warn(f"The Ray node {self._name()} was left out: {problem}.")
        del self._used[self._node]
        return False

    def _name(self) -> str:
        return f"node {self._node[:8]}" if self._node else "a node"

    # -- places -----------------------------------------------------------------------------------------------------

    def has_room(self, files_bytes: int) -> bool:
        """Whether some node has the memory for models with files of so many bytes together."""
        memory = int(_HEADROOM * files_bytes) + _MARGIN
        return self.cluster.has_node_for(memory, self._avoided)

    def wait_for_others(self) -> None:
        """Called while this process waits for what another one measures: give the place up if it may need it.

        Otherwise all places could be held by processes that wait for one that has none.
        """
        import ray

        if self._actor is None:
            self._full_since = None
            return
        now = time.monotonic()
        if self._full_since is None or now - self._full_since < _NOTICE_S:
            self._full_since = self._full_since or now
            return
        self._full_since = now
        with contextlib.suppress(Exception):
            free = ray.available_resources()  # type: ignore[no-untyped-call]
            if free.get("CPU", 0) < self._needs.cpus or free.get("GPU", 0) < self._needs.gpus:
                self.close()

    def close(self) -> None:
        """End the actor and its workers at once, whatever they do; they start again with the next call; never fails."""
        import ray

        actor, self._actor = self._actor, None
        self._full_since = None
        if actor is not None:
            # The children of a host end with it.
            with contextlib.suppress(Exception):
                ray.kill(actor, no_restart=True)

    def end(self) -> None:
        """End the actor, and leave nothing behind in the session's cache."""
        self.close()
        with contextlib.suppress(OSError):
            (self._files.cache / self._token).unlink()


def _blocks(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block
    except OSError as error:
        raise HarnessError(f"{path} cannot be read: {error.strerror or error}.", "Run again.") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
