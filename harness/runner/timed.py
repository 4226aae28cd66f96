"""What is timed: speed and memory of a model, and what clients of its server see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.engine.server import Server
from harness.engine.tasks import identify_build
from harness.measure.served import ServedResult, measure_served
from harness.measure.speed import SpeedRequest, SpeedResult, measure_speed

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
            "kind": "speed",
            "model": model.sha256,
            "settings": self._core.settings.to_json(),
            "pp": request.n_prompt,
            "tg": request.n_gen,
            "repetitions": request.repetitions,
            "engine": self._core.engine,
        }

        entry = self._core.cache.entry("speed", key)

        def measure() -> dict[str, Any]:
            self._core.close()
            with (
                self._core.progress.task(f"speed of {model.name}", "runs") as show,
                self._core.new_worker(model.name) as worker,
            ):
                return worker.call(measure_speed, show, request).to_json()

        return self._core.once(("speed", str(entry.folder)), lambda: SpeedResult(**self._core.stored(entry, measure)))

    def served(self, model: LoadedModel) -> ServedResult:
        """Throughput and latency under several clients, of a server of its own."""
        options = self._core.options
        request = options.served_request
        key = {
            "kind": "served",
            "model": model.sha256,
            "settings": options.server_settings.to_json(),
            "request": request.to_json(),
            "engine": identify_build(options.llama_server) if options.llama_server else self._core.engine,
        }
        entry = self._core.cache.entry("speed", key)

        def measure() -> dict[str, Any]:
            self._core.close()
            with (
                self._core.progress.task(f"{model.name}, {request.concurrency} clients", "requests") as show,
                self._new_server(model) as server,
            ):
                result = measure_served(server, request, show).to_json()
            self._core.check_unchanged(model)
            return result

        return self._core.once(("served", str(entry.folder)), lambda: ServedResult(**self._core.stored(entry, measure)))

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
