"""`gguf-harness explore`: a live page that reads prompts with a model."""

from __future__ import annotations

import argparse

from gguf_harness.errors import require_extra, visible

__all__ = ["add_explore_command"]


def add_explore_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the command."""
    explore = commands.add_parser(
        "explore", help="open a live page: type a prompt, see inside the model, switch heads and layers off"
    )
    explore.add_argument("model", help="path, alias, hf:org/repo:file-or-quant")
    explore.add_argument(
        "--reference", default=None, metavar="MODEL", help="show it beside this one, which it was made from"
    )
    explore.add_argument("--port", type=_port, default=0, metavar="N", help="(default: a free one)")
    explore.add_argument("--open", action="store_true", help="also open the page in a browser")
    explore.add_argument("--gpu", type=int, default=0, metavar="N", help="NVIDIA GPU, -1 for none (default: 0)")
    explore.set_defaults(function=_explore)
    return explore


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port, expected 0 to 65535")
    return int(text)


def _explore(known: argparse.Namespace, _: list[str]) -> int:
    require_extra("explore", "`gguf-harness explore`")
    from gguf_harness.engine.settings import SessionSettings
    from gguf_harness.explore.explorer_session import Explorer
    from gguf_harness.explore.serve import serve_explorer
    from gguf_harness.inputs.models import load_info
    from gguf_harness.inputs.options import default_threads
    from gguf_harness.inputs.sources import expand_one

    specs = [known.model] if known.reference is None else [known.reference, known.model]
    infos = [load_info(expand_one(spec)) for spec in specs]
    settings = SessionSettings(threads=known.threads or default_threads(), n_gpu_layers=0 if known.gpu < 0 else -1)
    explorer = Explorer(infos, settings, gpu=known.gpu)
    names = " beside its reference ".join(visible(info.name) for info in reversed(infos))
    print(f"Exploring {names}.", flush=True)
    serve_explorer(explorer, known.port, browser=known.open, say=lambda line: print(line, flush=True))
    return 0
