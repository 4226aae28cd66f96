"""What is timed: speed and memory of a model, and what clients of its server see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.engine.server import Server
from harness.machine import identify_machine
from harness.measure.served import ServedResult, measure_served
from harness.measure.speed import SpeedRequest, SpeedResult, bench_settings, measure_speed

if TYPE_CHECKING:
    from harness.runner.core import Core, LoadedModel

__all__ = ["Timed"]


class Timed:
    """Measurements that need the machine for themselves: whatever else is loaded is closed first."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def speed(self, model: LoadedModel) -> SpeedResult:
        """Speed and memory, in a process of its own."""
        request = SpeedRequest(
            model.files,
            self._core.settings,
            self._core.options.pp,
            self._core.options.tg,
            self._core.options.repetitions,
        )
        key = {
            "model": model.sha256,
            "settings": bench_settings(request.settings, max(request.n_prompt, request.n_gen)).to_json(),
            "pp": request.n_prompt,
            "tg": request.n_gen,
            "repetitions": request.repetitions,
            "engine": self._core.engine_key,
            "machine": identify_machine(),
        }
        entry = self._core.cache.entry("speed/speed", key)

        def measure() -> dict[str, Any]:
            self._core.close()
            with (
                self._core.progress.task(f"speed of {model.name}", "runs") as show,
                self._core.new_worker(model.name) as worker,
            ):
                return worker.call(measure_speed, show, request).to_json()

        def load() -> SpeedResult:
            return self._core.stored(entry, measure, lambda value: SpeedResult(**value))

        return self._core.once(("speed", str(entry.folder)), load)

    def served(self, model: LoadedModel) -> ServedResult:
        """Throughput and latency under several clients, of a server of its own."""
        options = self._core.options
        request = options.served_request
        key = {
            "model": model.sha256,
            "settings": options.server_settings.to_json(),
            "request": request.to_json(),
            "engine": self._core.engine_key,
            "server": self._core.build_hash(options.llama_server) if options.llama_server else None,
            "machine": identify_machine(),
        }
        entry = self._core.cache.entry("speed/served", key)

        def measure() -> dict[str, Any]:
            self._core.close()
            with (
                self._core.progress.task(f"{model.name}, {request.concurrency} clients", "requests") as show,
                self._new_server(model) as server,
            ):
                result = measure_served(server, request, show).to_json()
            self._core.check_unchanged(model)
            return result

        def load() -> ServedResult:
            return self._core.stored(entry, measure, lambda value: ServedResult(**value))

        return self._core.once(("served", str(entry.folder)), load)

    def server(self, model: LoadedModel) -> Server:
        """A running server of a model, until that of another model is asked for or a measurement needs the machine."""
        self._core.stop_worker()
        return self._core.servers.get(model.name, lambda: self._new_server(model))

    def _new_server(self, model: LoadedModel) -> Server:
        return Server(
            model.name,
            model.files,
            self._core.log(f"{model.name}.server"),
            self._core.options.server_settings,
            binary=self._core.options.llama_server,
            gpu=self._core.options.gpu,
            timeout_s=self._core.options.timeout_s,
        )
