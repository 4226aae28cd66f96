"""What is timed: speed and memory of a model, and what clients of its server see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gguf_harness.engine.server import Server
from gguf_harness.errors import HarnessError
from gguf_harness.measure.served import ServedResult, measure_served
from gguf_harness.measure.side_by_side import SpeedRequest, SpeedResult, Subject, fit_together, measure_speed
from gguf_harness.measure.speed import bench_settings

if TYPE_CHECKING:
    from gguf_harness.runner.core import Core, LoadedModel

__all__ = ["Timed"]


class Timed:
    """Measurements that need the machine for themselves: whatever else is loaded is closed first.

    What was disturbed is not kept: the next session measures it again.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def speed(self, model: LoadedModel, reference: LoadedModel | None = None) -> SpeedResult:
        """Speed and memory, in a process of its own, and beside a reference for their ratio.

        A reference that cannot be timed by itself leaves the model alone.
        """
        if reference is not None:
            try:
                self.speed(reference)
            except HarnessError:
                reference = None
        options = self._core.options
        request = SpeedRequest(self._core.settings, options.pp, options.tg, options.repetitions)
        key = {
            "model": model.sha256,
            "reference": reference.sha256 if reference else None,
            "settings": bench_settings(request.settings, max(request.n_prompt, request.n_gen)).to_json(),
            "pp": request.n_prompt,
            "tg": request.n_gen,
            "repetitions": request.repetitions,
            "engine": self._core.engine_key,
            "machine": self._core.machine_key,
        }
        entry = self._core.cache.entry("speed/speed", key)

        def measure() -> dict[str, Any]:
            self._core.close()
            ours, theirs = self._subject(model), self._subject(reference) if reference else None
            both = [subject for subject in (ours, theirs) if subject is not None]
            in_turns = fit_together(both, on_gpu=request.settings.n_gpu_layers != 0)
            label = f"speed of {model.name}" + (f" beside {reference.name}" if reference else "")
            with self._core.progress.task(label, "repetitions") as show:
                return measure_speed(ours, theirs, request, show, in_turns=in_turns).to_json()

        def load() -> SpeedResult:
            return self._core.stored(entry, measure, SpeedResult.from_json, lambda result: not result.is_disturbed)

        return self._core.once(("speed", str(entry.folder)), load)

    def _subject(self, model: LoadedModel) -> Subject:
        return Subject(model.files, lambda: self._core.new_worker(model.name))

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
            "machine": self._core.machine_key,
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
            return self._core.stored(entry, measure, ServedResult.from_json, lambda result: not result.is_disturbed)

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
