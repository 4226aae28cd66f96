"""A served model: answers, errors, many clients, and nothing left behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from gguf_harness.engine.server import Server, ServerPool
from gguf_harness.engine.settings import ServedRequest, ServerSettings, SessionSettings
from gguf_harness.errors import EngineCrashed, EngineError, EngineTimeout, NoData, OptionError
from gguf_harness.measure.speed.client import Client, Percentiles
from gguf_harness.measure.speed.served import ServedResult, measure_served
from tests.busy import busy_core
from tests.loaded import open_context
from tests.random_llama import write_random_llama

pytestmark = pytest.mark.model

ROOT = Path(__file__).parent.parent.parent
SETTINGS = ServerSettings(n_ctx=256)


@pytest.fixture(scope="module")
def llama_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small real model with random weights, in F32, that can be served."""
    return write_random_llama(tmp_path_factory.mktemp("models") / "random-F32.gguf", text=True)


@pytest.fixture(scope="module")
def server(llama_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server("random", [llama_file], tmp_path_factory.mktemp("server") / "log", SETTINGS) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.url, server.api_key, timeout_s=60)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# -- answers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chat", [False, True])
def test_the_same_prompt_gets_the_same_answer(client: Client, chat: bool) -> None:
    first = client.complete("the quick brown fox", max_tokens=12, chat=chat)
    client.complete("something else", max_tokens=3)
    second = client.complete("the quick brown fox", max_tokens=12, chat=chat)
    assert first.error is None
    assert first.text
    assert second.text == first.text
    assert first.finish_reason in {"length", "stop"}


def test_a_completion_is_what_the_model_says(client: Client, llama_file: Path) -> None:
    """Against a decode of the same model in this process."""
    with open_context([llama_file], SessionSettings(n_ctx=64, n_batch=64)) as context:
        expected = context.model.detokenize(list(context.generate(context.model.tokenize("the quick brown fox"), 8)))
    answer = client.complete("the quick brown fox", max_tokens=8)
    assert answer.error is None
    assert answer.text == expected.decode("ascii")


def test_a_file_whose_name_is_not_utf8_is_served(llama_file: Path, tmp_path: Path) -> None:
    """llama_cpp.server takes its path as JSON."""
    file = tmp_path / "m\udcff.gguf"
    os.link(llama_file, file)
    with Server("m", [file], tmp_path / "log", SETTINGS) as running:
        links = running._links
        assert links is not None
        assert Client(running.url, running.api_key, timeout_s=60).complete("the", max_tokens=2).error is None
    assert not Path(links.name).exists()


def test_times_add_up(client: Client) -> None:
    answer = client.complete("once upon a time", max_tokens=10, ignore_eos=True)
    assert answer.finish_reason == "length"
    assert answer.tokens == len(answer.itl_s) + 1
    assert answer.tokens == 10
    assert answer.ttft_s is not None
    assert 0 < answer.ttft_s <= answer.total_s
    assert answer.ttft_s + sum(answer.itl_s) <= answer.total_s
    assert min(answer.itl_s) >= 0


def test_eight_clients_are_all_answered(client: Client) -> None:
    seen: list[tuple[int, int]] = []
    prompts = [f"{number} bottles" for number in range(24)]
    answers = client.complete_many(prompts, 8, max_tokens=6, progress=lambda done, total: seen.append((done, total)))
    assert answers.failed == []
    assert len(answers.completions) == 24
    assert seen == [(done, 24) for done in range(1, 25)]
    assert answers.tokens_per_s == pytest.approx(sum(c.tokens for c in answers.completions) / answers.wall_s)
    first = Percentiles.of([completion.ttft_s for completion in answers.completions if completion.ttft_s is not None])
    assert first.n == 24
    assert 0 < first.p50 <= first.p90 <= first.p99 <= answers.wall_s
    # In order: each is what its prompt gets alone.
    for index in (0, 23):
        assert answers.completions[index].text == client.complete(prompts[index], max_tokens=6).text


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    "prompt",
    [
        "",
        "x" * 100_000,
        "\x00\x01\x1b[2J\r\n\u2028",
        "</script><script>alert(1)</script>",
        "<|bos|>" * 5,
        "\ud800",
        "😀",
    ],
    ids=["empty", "long", "control", "script", "special", "surrogate", "emoji"],
)
def test_a_hostile_prompt_is_answered_or_refused(client: Client, server: Server, prompt: str, chat: bool) -> None:
    answer = client.complete(prompt, max_tokens=4, chat=chat)
    if answer.error is None:
        assert answer.finish_reason in {"stop", "length"}
    else:
        assert "the server answered" in answer.error
        assert "Traceback" not in answer.error
    server.check()
    assert client.complete("and then", max_tokens=2).error is None


def test_a_prompt_beyond_the_context_names_the_limit(client: Client) -> None:
    error = client.complete("x" * 100_000).error
    assert error is not None
    assert "maximum context length is 256 tokens" in error


def test_a_failed_request_stands_among_the_others(client: Client) -> None:
    answers = client.complete_many(["one", "x" * 1000, "three"], 2, max_tokens=3)
    assert [completion.error is None for completion in answers.completions] == [True, False, True]
    with pytest.raises(NoData, match="1 of 3 requests failed"):
        _ = answers.tokens_per_s
    with pytest.raises(NoData, match="No prompts"):
        client.complete_many([], 8)
    with pytest.raises(OptionError, match="concurrency is 0"):
        client.complete_many(["one"], 0)


def test_a_request_has_a_timeout(server: Server) -> None:
    answer = Client(server.url, server.api_key, timeout_s=0.01).complete("once", max_tokens=200, ignore_eos=True)
    assert answer.error == "no complete answer within 0.01 s"


# -- who may ask -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_wrong_key_is_refused(server: Server, key: str) -> None:
    answer = Client(server.url, key).complete("hello", max_tokens=2)
    assert answer.error == "the server answered 401: Invalid API key"


def test_only_this_machine_can_connect(server: Server) -> None:
    listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == psutil.CONN_LISTEN]
    assert [c.laddr for c in listening] == [("127.0.0.1", server.port)]


def test_the_key_is_on_no_command_line(server: Server) -> None:
    for process in psutil.process_iter(["cmdline"]):
        assert server.api_key not in " ".join(process.info["cmdline"] or [])


def test_settings_of_other_servers_do_not_count(
    llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting of llama_cpp.server may come from the environment; HOST would open it to the network."""
    for name, value in {"HOST": "0.0.0.0", "PORT": "1", "n_batch": "no number", "ROOT_PATH": "/x"}.items():  # noqa: S104
        monkeypatch.setenv(name, value)
    with Server("random", [llama_file], tmp_path / "log", SETTINGS) as server:
        test_only_this_machine_can_connect(server)


# -- the end ---------------------------------------------------------------------------------------------------------


def test_nothing_is_left_after_close(llama_file: Path, tmp_path: Path) -> None:
    server = Server("random", [llama_file], tmp_path / "log", SETTINGS)
    process, port = psutil.Process(server.pid), server.port
    assert _listens(port)
    server.close()
    server.close()
    assert not process.is_running()
    assert not _listens(port)
    answer = Client(server.url, server.api_key).complete("hello")
    assert answer.error is not None
    assert "ConnectError" in answer.error


def test_close_does_not_wait_for_an_answer(llama_file: Path, tmp_path: Path) -> None:
    server = Server("random", [llama_file], tmp_path / "log", SETTINGS)
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    body = json.dumps({"prompt": "on", "max_tokens": 200, "min_tokens": 200, "stream": True})
    headers = {"Authorization": f"Bearer {server.api_key}", "Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", body, headers)
    server.close()
    connection.close()
    assert not psutil.pid_exists(server.pid)


def test_a_killed_server_is_a_crash(llama_file: Path, tmp_path: Path) -> None:
    with Server("random", [llama_file], tmp_path / "log", SETTINGS) as server:
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(EngineCrashed, match="random: the server process died of SIGKILL") as caught:
            measure_served(server, ServedRequest(2, 2, 2, 1), None)
        assert caught.value.exit_status == -signal.SIGKILL


def test_a_pool_keeps_one_server(llama_file: Path, tmp_path: Path) -> None:
    pool = ServerPool()

    def get(name: str) -> Server:
        return pool.get(name, lambda: Server(name, [llama_file], tmp_path / "log", SETTINGS))

    first = get("a")
    assert get("a") is first
    second = get("b")
    assert not first.is_running
    os.kill(second.pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(second.pid)], timeout=10)
    third = get("b")
    assert third.is_running
    pool.close()
    assert not third.is_running


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_when_the_parent_ends(llama_file: Path, tmp_path: Path, number: int) -> None:
    code = (
        "import signal, time; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from pathlib import Path; from gguf_harness.engine.server import Server;"
        f"s = Server('m', [Path({str(llama_file)!r})], Path({str(tmp_path / 'log')!r}));"
        "print(s.pid, s.port, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid, port = (int(word) for word in parent.stdout.readline().split())
        assert _listens(port)
        parent.send_signal(number)
        parent.wait(timeout=30)
    deadline = time.monotonic() + 10
    while (_listens(port) or _alive(pid)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(pid)
    assert not _listens(port)


def _alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


# -- what cannot be served -------------------------------------------------------------------------------------------


def test_a_broken_model_is_one_message(llama_file: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(llama_file.read_bytes()[:100_000])
    with pytest.raises(EngineError, match=r"broken: the server exited with status 1 .* refused the model") as caught:
        Server("broken", [broken], tmp_path / "log", SETTINGS)
    assert f"Failed to load model from file: {broken}" in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_a_slow_start_is_a_timeout(llama_file: Path, tmp_path: Path) -> None:
    before = psutil.Process().children()
    with pytest.raises(EngineTimeout, match=r"was not ready within 0\.01 s"):
        Server("random", [llama_file], tmp_path / "log", SETTINGS, timeout_s=0.01)
    assert psutil.Process().children() == before


def test_a_port_may_be_chosen(llama_file: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        with pytest.raises(EngineError, match=f"Port {port} of 127.0.0.1 cannot be listened on"):
            Server("random", [llama_file], tmp_path / "log", SETTINGS, port=port)
    with pytest.raises(EngineError, match="Port 70000 does not exist"):
        Server("random", [llama_file], tmp_path / "log", SETTINGS, port=70_000)
    with Server("random", [llama_file], tmp_path / "log", SETTINGS, port=port) as server:
        assert server.url == f"http://127.0.0.1:{port}"


def test_settings_are_checked() -> None:
    with pytest.raises(OptionError, match="parallel is 0"):
        ServerSettings(parallel=0)


# -- llama-server ----------------------------------------------------------------------------------------------------

# Takes llama-server's arguments and key, and runs the same engine.
STAND_IN = """#!{python}
import argparse, os
parser = argparse.ArgumentParser(allow_abbrev=False)
names = ["model", "alias", "host", "port", "ctx-size", "parallel", "threads", "n-gpu-layers"]
for name in names:
    parser.add_argument(f"--{{name}}", required=True)
types = {{"f16": "1", "q8_0": "8"}}
parser.add_argument("--cache-type-k", choices=types)
parser.add_argument("--cache-type-v", choices=types)
given = parser.parse_args()
os.environ["API_KEY"] = os.environ["LLAMA_API_KEY"]
words = ["--model", given.model, "--model_alias", given.alias, "--host", given.host, "--port", given.port,
         "--n_ctx", given.ctx_size, "--interrupt_requests", "False"]
if given.cache_type_k:
    words += ["--type_k", types[given.cache_type_k], "--type_v", types[given.cache_type_v], "--flash_attn", "True"]
assert not [name for name in os.environ if name.startswith("LLAMA_ARG_")]
os.execv("{python}", ["{python}", "-m", "llama_cpp.server", *words])
"""


@pytest.fixture(params=["stand-in", "llama-server"])
def binary(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """llama-server where one is installed, and something that is called like it."""
    if request.param == "llama-server":
        path = shutil.which("llama-server")
        if path is None:
            pytest.skip("llama-server is not installed")
        return Path(path)
    file = tmp_path / "llama-server"
    file.write_text(STAND_IN.format(python=sys.executable))
    file.chmod(0o755)
    return file


def test_a_binary_serves_as_well(
    binary: Path, llama_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_ARG_HOST", "0.0.0.0")  # noqa: S104
    settings = ServerSettings(n_ctx=128, parallel=2)
    with Server("random", [llama_file], tmp_path / "log", settings, binary=binary) as server:
        test_only_this_machine_can_connect(server)
        test_the_key_is_on_no_command_line(server)
        client = Client(server.url, server.api_key)
        assert client.complete_many(["a", "b", "c", "d"], 4, max_tokens=4).failed == []
        refused = Client(server.url, "wrong").complete("a").error
        assert refused is not None
        assert refused.startswith("the server answered 401")
        pid = server.pid
    assert not psutil.pid_exists(pid)


@pytest.mark.parametrize("served", ["llama_cpp.server", "stand-in"])
def test_types_of_the_cache_reach_the_server(llama_file: Path, tmp_path: Path, served: str) -> None:
    """llama.cpp's log says what the cache is made of; by default nothing is asked for."""
    binary = None
    if served == "stand-in":
        binary = tmp_path / "llama-server"
        binary.write_text(STAND_IN.format(python=sys.executable))
        binary.chmod(0o755)
    for k, v in (("q8_0", "q8_0"), ("q8_0", "f16"), ("f16", "f16")):
        settings = ServerSettings(n_ctx=128, cache_type_k=k, cache_type_v=v)  # type: ignore[arg-type]
        log = tmp_path / f"{k}-{v}.log"
        with Server("random", [llama_file], log, settings, binary=binary) as server:
            assert Client(server.url, server.api_key).complete("a", max_tokens=4).error is None
        assert re.search(rf"K \({k}\): .*V \({v}\): ", log.read_text())
    assert ServerSettings().to_json() == {"n_ctx": 2048, "threads": 1, "n_gpu_layers": -1, "parallel": 1}
    assert settings.to_json().keys() == ServerSettings().to_json().keys()
    assert ServerSettings(cache_type_k="q8_0").to_json()["cache_type_v"] == "f16"


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (None, 0o755, "no such file"),
        ("#!/bin/sh\n", 0o644, "is not executable"),
        ("#!/bin/sh\necho 'no such option' >&2\nexit 2\n", 0o755, "no such option"),
        ("no program", 0o755, "cannot be run: Exec format error"),
        ("#!/bin/sh\nkill -ABRT $$\n", 0o755, "died of SIGABRT"),
    ],
)
def test_a_binary_that_does_not_work_is_one_message(
    llama_file: Path, tmp_path: Path, content: str | None, mode: int, message: str
) -> None:
    binary = tmp_path / "llama-server"
    if content is not None:
        binary.write_text(content)
        binary.chmod(mode)
    with pytest.raises(EngineError) as caught:
        Server("random", [llama_file], tmp_path / "log", SETTINGS, binary=binary)
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)


# -- what is measured ------------------------------------------------------------------------------------------------


def test_a_measurement_has_every_value(server: Server) -> None:
    seen: list[tuple[int, int]] = []
    request = ServedRequest(requests=8, concurrency=8, max_tokens=4, repetitions=2)
    result = measure_served(server, request, lambda done, total: seen.append((done, total)))
    for timing in (result.throughput, result.single):
        # Disturbed ones are taken again, and more than two are kept where too few are undisturbed.
        assert 2 <= len(timing.ours) <= 4
        assert all(repetition.value > 0 for repetition in timing.ours)
        assert all(repetition.use.own_s > 0 for repetition in timing.ours)
    repetitions = len(result.throughput.ours)
    assert len(result.ttft_s) == repetitions * 8
    assert len(result.itl_s) == repetitions * 8 * 3
    assert seen[-1] == (16, 16)
    assert len({*request.prompts(0), *request.prompts(1)}) == 16
    assert ServedResult.from_json(result.to_json()) == result


@pytest.mark.exclusive
def test_a_measurement_beside_two_busy_processes_is_in_doubt(llama_file: Path, tmp_path: Path) -> None:
    request = ServedRequest(requests=4, concurrency=4, max_tokens=32, repetitions=2)
    with busy_core(), Server("random", [llama_file], tmp_path / "log", SETTINGS) as server:
        result = measure_served(server, request, None)
    assert result.is_disturbed
    assert re.search(r"other processes took .* of 1 core during \d of \d repetitions", str(result.throughput.doubt))


def test_a_measurement_without_answers_says_why(server: Server) -> None:
    request = ServedRequest(requests=2, concurrency=2, max_tokens=2, repetitions=1, timeout_s=1e-4)
    with pytest.raises(EngineError, match="random: 1 of 1 requests failed: no complete answer within"):
        measure_served(server, request, None)


def test_a_larger_model_is_read_from_its_own_file(tmp_path: Path) -> None:
    """Each server serves what it was asked to."""
    texts = []
    for seed in (1, 2):
        file = write_random_llama(tmp_path / f"{seed}.gguf", seed=seed, text=True)
        with Server("m", [file], tmp_path / "log", SETTINGS) as server:
            texts.append(Client(server.url, server.api_key).complete("hello", max_tokens=8, ignore_eos=True).text)
    assert texts[0] != texts[1]
