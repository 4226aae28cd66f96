"""Timings: speed and memory of a subject, and latency and throughput for clients of its server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from gguf_harness.engine.server import Server
from gguf_harness.errors import HarnessError, OptionError
from gguf_harness.measure.measurement import Job, Measurement, as_json
from gguf_harness.measure.memory import hold_together
from gguf_harness.measure.speed.served import ServedResult, measure_served
from gguf_harness.measure.speed.side_by_side import (
    DepthSpeed,
    SpeedRequest,
    SpeedResult,
    Timed,
    measure_depths,
    measure_speed,
)
from gguf_harness.metrics.timings import describe_disturbance

if TYPE_CHECKING:
    from gguf_harness.engine.settings import ServedRequest, ServerSettings
    from gguf_harness.engine.worker import ProgressCallback
    from gguf_harness.inputs.ladder import PlannedSubject
    from gguf_harness.inputs.subjects import Subject
    from gguf_harness.measure.core import Core

__all__ = ["Served", "Servers", "Speed"]

R = TypeVar("R")


def _time(show: ProgressCallback, ours: Timed, theirs: Timed | None, request: SpeedRequest) -> SpeedResult:
    return measure_speed(ours, theirs, request, show, in_turns=_fit(ours, theirs, request))


def _time_depths(show: ProgressCallback, ours: Timed, theirs: Timed | None, request: SpeedRequest) -> DepthSpeed:
    return measure_depths(ours, theirs, request, show, in_turns=_fit(ours, theirs, request))


def _fit(ours: Timed, theirs: Timed | None, request: SpeedRequest) -> bool:
    """Whether memory holds both at once."""
    files = [file for timed in (ours, theirs) if timed is not None for file in timed.files]
    return hold_together(files, on_gpu=request.settings.n_gpu_layers != 0)


def _serve(show: ProgressCallback, servers: Servers, model: Subject, request: ServedRequest) -> ServedResult:
    with servers.started(model) as server:
        return measure_served(server, request, show)


_SPEED: Final = Measurement(
    "speed/speed", 2, _time, "repetitions", as_json(SpeedResult.to_json, SpeedResult.from_json),
    runs="in the session", exclusive=True, keep=lambda result: not result.is_disturbed,
)  # fmt: skip
_AT_DEPTH: Final = Measurement(
    "speed/depth", 1, _time_depths, "repetitions", as_json(DepthSpeed.to_json, DepthSpeed.from_json),
    runs="in the session", exclusive=True, keep=lambda result: not result.is_disturbed,
)  # fmt: skip
_SERVED: Final = Measurement(
    "speed/served", 2, _serve, "requests", as_json(ServedResult.to_json, ServedResult.from_json),
    runs="in the session", exclusive=True, keep=lambda result: not result.is_disturbed,
)  # fmt: skip
"""Disturbed timings are not kept: the next session measures them again."""


class Speed:
    """Timings and memory of subjects, in separate processes, in turns with the reference.

    Args:
        core: runs measurements.
        reference: the model that subjects are compared with; None if there is none.
    """

    def __init__(self, core: Core, reference: PlannedSubject | None = None) -> None:
        self._core = core
        self._reference = reference

    def __call__(self, model: Subject) -> SpeedResult:
        """Speed and memory of a subject, from the cache if possible."""
        result = self.beside(model, self._core.reference_of(model, self._reference))
        for doubt in _doubts(result):
            self._core.notes.warn(f"{model.name}: {doubt}")
        return result

    def beside(self, model: Subject, reference: Subject | None = None) -> SpeedResult:
        """Speed and memory in turns with a reference, for their ratio.

        If the reference cannot be timed, the subject is timed alone.
        """
        if reference is not None:
            try:
                self.beside(reference)
            except HarnessError:
                reference = None
        return self._core.measure(self._job(_SPEED, model, reference, ()))

    def at_depth(self, model: Subject, reference: Subject | None = None) -> DepthSpeed:
        """Speed after each of --gguf-depths tokens in the cache, in turns with a reference; from the cache if possible.

        Raises:
            OptionError: the deepest test is longer than what the model was trained on, and that was not asked for.
        """
        options = self._core.options
        depths = options.depths or (options.ctx // 2,)
        most, room = max(options.pp, options.tg) + max(depths), model.settings.reach(model.info.n_ctx_train or 0)
        if most > room > 0 and not model.settings.beyond_context:
            raise OptionError(
                f"{model.name} was made for {room} tokens, but {max(depths)} (--gguf-depths) and those that are timed"
                f" are {most}.",
                f"Use --gguf-depths={max(0, room - max(options.pp, options.tg))} or less, or --gguf-beyond-context.",
            )
        return self._core.measure(self._job(_AT_DEPTH, model, reference, depths))

    def _job(
        self, measurement: Measurement[R], model: Subject, reference: Subject | None, depths: tuple[int, ...]
    ) -> Job[R]:
        options = self._core.options
        request = SpeedRequest(model.settings, options.pp, options.tg, options.repetitions, depths)
        key: dict[str, Any] = {
            "model": model.sha256,
            "settings": request.bench.to_json(),
            "reference": reference.sha256 if reference else None,
            "reference_settings": replace(request, settings=reference.settings).bench.to_json() if reference else None,
            "pp": request.n_prompt,
            "tg": request.n_gen,
            "repetitions": request.repetitions,
            "engine": self._core.llama_cpp.key,
            "machine": self._core.machine_key,
        }
        key |= {"depths": list(depths)} if depths else {}
        ours, theirs = self._timed(model), self._timed(reference) if reference else None
        label = f"speed of {model.name}" + (f" beside {reference.name}" if reference else "")
        subjects = (model,) if reference is None else (model, reference)
        part = f"{measurement.kind}-{'alone' if reference is None else 'beside'}"
        return Job(measurement, label, key, lambda _: (ours, theirs, request), subjects=subjects, part=part)

    def _timed(self, model: Subject) -> Timed:
        return Timed(model.files, lambda: self._core.own_worker(model.model.name), model.settings)


def _doubts(result: SpeedResult) -> Iterator[str]:
    """Warnings about unreliable timings of a model, with reasons."""
    names = {"pp": "prompt speed", "tg": "generation speed", "load": "load time"}
    own = [test for test in names if result.timings[test].doubt]
    beside = [test for test in names if test not in own and result.timings[test].theirs]
    ratios = [test for test in beside if result.timings[test].ratio_doubt]
    for tests, what, mark in ((own, "ratio, claim or gate on", " (marked ?)"), (ratios, "ratio or claim on", "")):
        if not tests:
            continue
        timings = [result.timings[test] for test in tests]
        reason = describe_disturbance([use for timing in timings for use in timing.uses])
        again = ". The next run measures it again" if reason else ""
        about = " and ".join(names[test] for test in tests)
        yield f"no {what} its {about}{mark}: {reason or timings[0].doubt or timings[0].ratio_doubt}{again}"


class Servers:
    """Running servers of subjects, behind an OpenAI-compatible API.

    Args:
        core: starts the servers.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    def __call__(self, model: Subject) -> Server:
        """A running server, until one of another subject is requested or a timing needs the machine to itself."""
        self._core.stop_worker()
        return self._core.servers.get(model.name, lambda: self.started(model))

    def settings(self, model: Subject) -> ServerSettings:
        """How a subject is served: with the types of its KV cache.

        Raises:
            OptionError: the subject has adapters.
        """
        _require_served_alike(model)
        own = model.settings
        return replace(
            self._core.options.server_settings,
            cache_type_k=own.cache_type_k,
            cache_type_v=own.cache_type_v,
            rotate_kv=own.rotate_kv,
        )

    def started(self, model: Subject) -> Server:
        """A separate server, to be closed by the caller.

        Raises:
            OptionError: the subject has adapters.
        """
        options = self._core.options
        return Server(
            model.name,
            model.files,
            self._core.log(f"{model.name}.server"),
            self.settings(model),
            binary=options.llama_server,
            gpu=options.gpu,
            timeout_s=options.timeout_s,
        )


def _require_served_alike(model: Subject) -> None:
    """A server is started with the model's file and its KV cache: what else makes a subject, it does not know."""
    if model.settings.rope is not None:
        raise OptionError(
            f"{model.name} cannot be served: servers are started without rope scaling.", f"Serve {model.model.name}."
        )
    if model.adapters:
        raise OptionError(
            f"{model.name} cannot be served: servers are started without LoRA adapters.",
            f"Serve {model.model.name} alone, or a file that the adapters were merged into (llama-export-lora).",
        )


class Served:
    """Throughput and latency as clients of a server see them.

    Args:
        core: runs measurements.
        servers: start the server.
    """

    def __init__(self, core: Core, servers: Servers) -> None:
        self._core = core
        self._servers = servers

    def __call__(self, model: Subject) -> ServedResult:
        """Throughput and latency with several clients on a separate server, from the cache if possible."""
        options = self._core.options
        request = options.served_request
        key = {
            "model": model.sha256,
            "settings": self._servers.settings(model).to_json(),
            "request": request.to_json(),
            "engine": self._core.llama_cpp.key,
            "server": self._core.llama_cpp.build_hash(options.llama_server) if options.llama_server else None,
            "machine": self._core.machine_key,
        }
        label = f"{model.name}, {request.concurrency} clients"
        job = Job(_SERVED, label, key, lambda _: (self._servers, model, request), subjects=(model,))
        return self._core.measure(job)
