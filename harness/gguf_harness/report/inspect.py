"""Facts about a model file as text."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gguf_harness.report.data import visible
from gguf_harness.report.numbers import format_bytes

if TYPE_CHECKING:
    from gguf_harness.inputs.models import ModelInfo

__all__ = ["render_info"]


def render_info(info: ModelInfo, *, color: bool) -> str:
    """A summary of what to know before using a file."""
    bold, plain = ("\x1b[1m", "\x1b[0m") if color else ("", "")
    lines = [
        f"{bold}{visible(info.name)}{plain}",
        f"  file            {visible(info.files[0].name)}"
        + (f" and {len(info.files) - 1} more splits" if len(info.files) > 1 else ""),
        f"  size            {format_bytes(info.bytes)} ({info.bytes:,} bytes)",
        f"  architecture    {visible(info.architecture)}{_shape(info)}",
        f"  parameters      {info.parameters:,}",
        f"  bits per weight {info.bits_per_weight:.2f}",
        f"  declared type   {info.quantization or 'none'}",
        f"  vocabulary      {info.n_vocab or 'none'}{f' tokens ({visible(info.tokenizer)})' if info.tokenizer else ''}",
        "  tensor types",
    ]
    for kind, row in info.tensor_types.items():
        share = row["bytes"] / sum(other["bytes"] for other in info.tensor_types.values())
        lines.append(f"    {kind:<8} {row['tensors']:>4} tensors  {format_bytes(row['bytes']):>8}  {share:>6.1%}")
    if info.fallbacks:
        swaps = Counter((entry["wanted"], entry["got"], entry["row_width"]) for entry in info.fallbacks)
        lines.append("  fallbacks (rows that are not a multiple of 256)")
        lines += [
            f"    {count:>4} x {got} in place of {wanted}, rows of {w}" for (wanted, got, w), count in swaps.items()
        ]
    lines += [f"  warning: {visible(warning)}" for warning in info.warnings]
    return "\n".join(lines) + "\n"


def _shape(info: ModelInfo) -> str:
    parts = [
        f"{info.n_layer} layers" if info.n_layer else "",
        f"{info.n_head} heads" if info.n_head else "",
        f"width {info.n_embd}" if info.n_embd else "",
        f"context {info.n_ctx_train:,}" if info.n_ctx_train else "",
    ]
    text = ", ".join(part for part in parts if part)
    return f": {text}" if text else ""
