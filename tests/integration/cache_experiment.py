"""What llama.cpp does with types of the cache: it runs, it refuses, or it aborts the process.

Each trial has a process of its own, since an abort ends it. The settings' own checks are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gguf_harness.engine.settings import CacheType, FlashAttention

__all__ = ["outcomes"]

RUNS, REFUSED, ABORTED = "runs", "refused", "aborted"


def outcomes(model: Path, trials: Sequence[tuple[str, str, str]]) -> list[str]:
    """`runs`, `refused` or `aborted` for each trial.

    Args:
        model: file to decode three tokens with.
        trials: (type of K, type of V, flash attention: auto, on or off).
    """
    work = [sys.executable, "-m", "tests.integration.cache_experiment", os.fspath(model), json.dumps(trials)]
    environment = {**os.environ, "GGML_NO_BACKTRACE": "1"}
    done = subprocess.run(work, capture_output=True, text=True, check=True, timeout=300, env=environment)
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def _try_all(path: str, trials: Sequence[tuple[CacheType, CacheType, FlashAttention]]) -> list[str]:
    from gguf_harness.engine.c_api import llama_cpp

    llama_cpp.llama_backend_init()
    parameters = llama_cpp.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(path.encode(), parameters)
    assert model, f"llama.cpp does not load {path}"
    found = []
    for trial in trials:
        child = os.fork()
        if child == 0:
            os._exit(_try(model, *trial))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found.append({0: RUNS, 3: REFUSED}.get(code, ABORTED))
    return found


def _try(model: Any, k: CacheType, v: CacheType, flash: FlashAttention) -> int:
    import numpy as np

    from gguf_harness.engine.c_api import llama_cpp
    from gguf_harness.engine.parameters import FLASH_TYPES
    from gguf_harness.engine.settings import GGML_TYPES

    settings = llama_cpp.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = 256
    settings.n_threads = settings.n_threads_batch = 1
    settings.flash_attn_type = FLASH_TYPES[flash]
    settings.type_k, settings.type_v = GGML_TYPES[k], GGML_TYPES[v]
    context = llama_cpp.llama_init_from_model(model, settings)
    if not context:
        return 3
    tokens = (llama_cpp.llama_token * 3)(1, 2, 3)
    batch = llama_cpp.llama_batch_get_one(tokens, 3)
    if llama_cpp.llama_model_has_encoder(model):
        assert llama_cpp.llama_encode(context, batch) == 0
    assert llama_cpp.llama_decode(context, batch) == 0
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits(context), (32,))
    return 0 if np.isfinite(logits).all() else 4


if __name__ == "__main__":
    print(json.dumps(_try_all(sys.argv[1], json.loads(sys.argv[2]))))
