"""Workers that are children of Ray actors: as workers here, and what is lost on the way is done again elsewhere."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gguf_harness.cluster.actors import Actors
from gguf_harness.cluster.connection import Cluster, Needs, alive_nodes, disconnect, start
from gguf_harness.cluster.host import HostSetup
from gguf_harness.cluster.ray_worker import RayWorker
from gguf_harness.errors import CorpusError, EngineCrashed, EngineTimeout, FilesLost, StoreError
from tests import ray_tasks
from tests.ray_cluster import Nodes, ray_nodes, wait_until

pytestmark = [pytest.mark.model, pytest.mark.xdist_group("ray")]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with ray_nodes(tmp_path_factory.mktemp("ray"), left=1, right=1) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def cluster(nodes: Nodes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """As a session joins it."""
    setup = HostSetup("looks", tmp_path_factory.mktemp("cache"), ("", b""), 10**9, False, 30.0, {})
    cluster = start(nodes.address, Needs(1, 0), setup, None)
    yield cluster
    disconnect()


OpenActors = Callable[..., Actors]


@pytest.fixture
def warnings_told() -> list[str]:
    return []


@pytest.fixture
def open_actors(cluster: Cluster, tmp_path: Path, warnings_told: list[str]) -> Iterator[OpenActors]:
    opened: list[Actors] = []

    def open_them(timeout_s: float = 60.0) -> Actors:
        actors = Actors(
            cluster,
            tmp_path / "cache",
            session=tmp_path.name,
            cache_limit=10**9,
            timeout_s=timeout_s,
            warn=warnings_told.append,
        )
        opened.append(actors)
        return actors

    yield open_them
    for actors in opened:
        actors.end()
    assert [path.name for path in (tmp_path / "cache").glob(".seen-by-*")] == []


@pytest.fixture
def actors(open_actors: OpenActors) -> Actors:
    return open_actors()


def test_results_progress_and_errors_come_back(actors: Actors) -> None:
    seen: list[tuple[int, int]] = []
    with RayWorker(actors, "model", 1000) as worker:
        assert worker.call(ray_tasks.double, lambda *report: seen.append(report), 21) == 42
        assert seen in ([(1, 2), (2, 2)], [(2, 2)])
        first = worker.call(ray_tasks.where, None)
        with pytest.raises(CorpusError, match="no such text\n  try another"):
            worker.call(ray_tasks.fail, None)
        assert worker.call(ray_tasks.where, None) == first
        with RayWorker(actors, "other", 0) as other:
            assert other.call(ray_tasks.where, None)[1] == first[1], "two workers of a process share its actor"
            assert worker.call(ray_tasks.where, None) == first
    (machine,) = actors.used
    assert machine["calls"] == 6
    assert set(machine) == {"node", "system", "python", "cpu", "cores", "memory_bytes", "gpus", "harness", "calls"}


@pytest.mark.parametrize(
    ("number", "words"), [(signal.SIGABRT, "llama.cpp aborted"), (signal.SIGKILL, "killed from outside")]
)
def test_a_crash_of_llama_cpp_is_the_same_error_and_the_actor_lives_on(actors: Actors, number: int, words: str) -> None:
    with RayWorker(actors, "model", 0) as worker:
        actor = worker.call(ray_tasks.where, None)[1]
        with pytest.raises(EngineCrashed, match=words) as caught:
            worker.call(ray_tasks.die, None, number)
        assert caught.value.exit_status == -number
        assert "the last words of llama.cpp" in caught.value.hint
        assert worker.call(ray_tasks.where, None)[1] == actor


def test_silence_is_a_timeout(open_actors: OpenActors, tmp_path: Path) -> None:
    with RayWorker(open_actors(timeout_s=0.5), "slow", 0) as worker:
        with pytest.raises(EngineTimeout, match=r"the worker sent nothing for 0\.5 s"):
            worker.call(ray_tasks.sleep, None, 20.0)
        assert worker.call(ray_tasks.double, None, 1) == 2


def test_files_travel_both_ways(actors: Actors, nodes: Nodes, tmp_path: Path) -> None:
    """40 MB are two blocks; what the node needs again is not sent again."""
    cache = tmp_path / "cache"
    with RayWorker(actors, "model", 0) as worker:
        made = cache / "passes" / "one" / "content.bin"
        assert worker.call(ray_tasks.write, None, None, made.parent, 40_000_000)["file"] == made
        content = made.read_bytes()
        assert len(content) == 40_000_000
        model = cache / "models" / "key" / "m.gguf"
        model.parent.mkdir(parents=True)
        model.write_bytes(content[:35_000_000])
        (here,) = [folder for folder in nodes.folders.values() if list(folder.glob("borrowed/*/one"))]
        worker.call(ray_tasks.write, None, model, cache / "passes" / "two", 100)
        (sent,) = here.glob("models/*/m.gguf")
        stamp = sent.stat().st_mtime_ns
        assert sent.read_bytes() == content[:35_000_000]
        from_base = worker.call(ray_tasks.write, None, made, cache / "passes" / "three", 100)
        assert (cache / "passes" / "three" / "content.bin").read_bytes()[0] == from_base["first"]
        worker.call(ray_tasks.write, None, model, cache / "passes" / "four", 100)
        assert sent.stat().st_mtime_ns == stamp
    # Another actor, and so perhaps another node: what one has written, the other reads.
    actors.close()
    actors._avoided |= {node for node in actors.cluster.nodes if node == actors._node}
    with RayWorker(actors, "model", 0) as worker:
        again = worker.call(ray_tasks.write, None, made, cache / "passes" / "five", 100)
    assert again["first"] == from_base["first"]


def test_files_that_were_lost_are_the_callers_to_measure_again(actors: Actors, tmp_path: Path) -> None:
    with RayWorker(actors, "model", 0) as worker, pytest.raises(FilesLost, match="is damaged"):
        worker.call(ray_tasks.lose, None, tmp_path / "cache" / "passes" / "base")
    assert len(actors.used) == 1


def test_an_actor_that_is_killed_costs_a_retry(actors: Actors, tmp_path: Path) -> None:
    with RayWorker(actors, "model", 0) as worker:
        assert worker.call(ray_tasks.stop_actor, None, tmp_path / "once") == "done"
    assert (tmp_path / "once").exists()


def test_what_is_lost_each_time_is_a_crash_of_that_model(actors: Actors) -> None:
    with RayWorker(actors, "model", 0) as worker:
        with pytest.raises(EngineCrashed, match="model: its measurement was lost 3 times on the Ray cluster") as caught:
            worker.call(ray_tasks.stop_actor, None, None)
        assert caught.value.hint.count("node ") == 3
        assert worker.call(ray_tasks.double, None, 1) == 2


def test_interruptions_end_the_call_and_its_actor(actors: Actors, tmp_path: Path) -> None:
    class Enough(BaseException):
        pass

    def stop(_done: int, _total: int) -> None:
        raise Enough

    with RayWorker(actors, "model", 0) as worker:
        actor = worker.call(ray_tasks.where, None)[1]
        with pytest.raises(Enough):
            worker.call(ray_tasks.sleep, stop, 30.0)
        assert worker.call(ray_tasks.where, None)[1] != actor


def test_a_full_disk_is_avoided(nodes: Nodes, open_actors: OpenActors, tmp_path: Path) -> None:
    """Both what a node receives and what its tasks write: they are done on a node that has room."""
    nodes.add("full", 4, largest_file=100_000)
    try:
        actors, cache = open_actors(), tmp_path / "cache"
        actors._checked |= _ids(nodes)  # its llama.cpp is that of the others
        actors._avoided |= set(actors.cluster.nodes)  # at first, only the full one is left
        with RayWorker(actors, "model", 0) as worker:
            assert worker.call(ray_tasks.double, None, 1) == 2
            (full,) = {machine["node"] for machine in actors.used}
            actors._avoided.clear()
            made = worker.call(ray_tasks.write, None, None, cache / "passes" / "one", 5_000_000)
            assert made["file"] == cache / "passes" / "one" / "content.bin"
            assert (cache / "passes" / "one" / "content.bin").stat().st_size == 5_000_000
            assert full in {node[:8] for node in actors._avoided}
        (begun,) = nodes.folders["full"].glob("borrowed/*/one/content.bin")
        assert begun.stat().st_size == 100_000, "the system refused the rest"
    finally:
        nodes.remove("full")


def test_a_lost_node_costs_a_retry_on_another_one(nodes: Nodes, open_actors: OpenActors, tmp_path: Path) -> None:
    nodes.add("leaving", 4)
    actors = open_actors()
    actors._checked |= _ids(nodes)
    actors._avoided |= set(actors.cluster.nodes)

    def leave() -> None:
        wait_until(lambda: list(tmp_path.glob("*-*")), "the task")
        nodes.remove("leaving")

    thread = threading.Thread(target=leave)
    with RayWorker(actors, "model", 0) as worker:
        assert worker.call(ray_tasks.double, None, 1) == 2
        actors._avoided.clear()
        thread.start()
        assert worker.call(ray_tasks.sleep, None, 3.0, tmp_path) == 3.0
    thread.join()
    assert len(list(tmp_path.glob("*-*"))) == 2
    assert len(actors.used) == 2


def _ids(nodes: Nodes) -> set[str]:
    return {node["NodeID"] for node in alive_nodes()}


def test_a_node_with_another_llama_cpp_is_left_out(
    nodes: Nodes, open_actors: OpenActors, cluster: Cluster, warnings_told: list[str]
) -> None:
    """It came later than the session has looked; a variable changes what its llama.cpp computes."""
    nodes.add("unlike", 4)
    try:
        actors = open_actors()
        actors.cluster.engine["key"]["environment"] = {"GGML_OTHER": "1"}
        actors._avoided |= set(cluster.nodes)
        with pytest.raises(Exception, match="No node of the Ray cluster"), RayWorker(actors, "model", 0) as worker:
            _without_patience(actors, worker)
        (told,) = warnings_told
        assert "other GGML_ variables in its environment" in told
    finally:
        actors.cluster.engine["key"]["environment"] = {}
        nodes.remove("unlike")


def _without_patience(actors: Actors, worker: RayWorker) -> None:
    from gguf_harness.cluster import actors as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_NEW_NODE_S", 0.5)
        worker.call(ray_tasks.double, None, 1)


def test_who_waits_for_another_process_gives_its_place_up(open_actors: OpenActors) -> None:
    """Otherwise those who hold all places could wait for one who has none."""
    every = [open_actors() for _ in range(2)]
    workers = [RayWorker(actors, f"model {number}", 0) for number, actors in enumerate(every)]
    for worker in workers:
        assert worker.call(ray_tasks.double, None, 1) == 2
    late = open_actors()
    answers: list[int] = []
    thread = threading.Thread(target=lambda: answers.append(RayWorker(late, "late", 0).call(ray_tasks.double, None, 4)))
    thread.start()
    time.sleep(1)
    assert answers == []

    def is_done() -> bool:
        every[0].wait_for_others()
        return bool(answers)

    wait_until(is_done, "a place", 30)
    thread.join()
    assert answers == [8]
    for worker in workers:
        worker.close()


@contextmanager
def _session_disk_full(limit: int) -> Iterator[None]:
    import resource

    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_of_the_session_is_no_fault_of_a_node(actors: Actors, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "passes" / "one"
    with RayWorker(actors, "model", 0) as worker:
        assert worker.call(ray_tasks.double, None, 1) == 2
        with _session_disk_full(100_000), pytest.raises(StoreError, match="could not be written"):
            worker.call(ray_tasks.write, None, None, folder, 5_000_000)
    assert not folder.exists() or list(folder.iterdir()) == []
    assert actors._avoided == set(actors.cluster.refused)


def test_ray_is_asked_for_nothing_that_it_prints(capfd: pytest.CaptureFixture[str], actors: Actors) -> None:
    with RayWorker(actors, "model", 0) as worker:
        worker.call(ray_tasks.double, None, 1)
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
