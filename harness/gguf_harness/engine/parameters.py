"""Settings as llama.cpp's parameters of a context."""

from __future__ import annotations

from typing import Any, Final

from gguf_harness.engine.c_api import llama_cpp
from gguf_harness.engine.settings import GGML_TYPES, SessionSettings

__all__ = ["FLASH_TYPES", "context_parameters"]

FLASH_TYPES: Final[dict[str, int]] = {
    "auto": llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "off": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    "on": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
}

_ROPE: Final[dict[str, int]] = {
    "none": llama_cpp.LLAMA_ROPE_SCALING_TYPE_NONE,
    "linear": llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    "yarn": llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
}


def context_parameters(settings: SessionSettings, model: Any, *, full_windows: bool = True) -> Any:
    """`llama_context_params` of a loaded model.

    Args:
        settings: how to run it.
        model: llama.cpp's pointer.
        full_windows: whether layers with a sliding window cache all tokens: sequences can then be cut anywhere.
    """
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = settings.n_ctx * settings.n_seq
    parameters.n_batch = min(settings.n_batch, parameters.n_ctx)
    parameters.n_ubatch = settings.n_ubatch
    parameters.n_seq_max = settings.n_seq
    parameters.n_threads = parameters.n_threads_batch = settings.threads
    parameters.flash_attn_type = FLASH_TYPES[settings.flash_attention]
    parameters.swa_full = full_windows
    # Without layers on the GPU, llama.cpp would still copy matrices to one that it sees, for products of large batches.
    parameters.op_offload = settings.n_gpu_layers != 0
    parameters.type_k = GGML_TYPES[settings.cache_type_k]
    parameters.type_v = GGML_TYPES[settings.cache_type_v]
    if settings.rope is not None:
        parameters.rope_scaling_type = _ROPE[settings.rope.kind]
        parameters.rope_freq_scale = 1 / settings.rope.factor
    # Cross-attention requires a cache shared by sequences, and aborts otherwise.
    parameters.kv_unified = bool(llama_cpp.llama_model_has_encoder(model))
    return parameters
