"""llama.cpp's own tools, built once from the sdist of the installed llama-cpp-python: same sources, same options."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

__all__ = ["build_tools"]

TOOLS = ("llama-perplexity", "llama-bench", "llama-quantize")


def build_tools(cache: Path, tools: Sequence[str] = TOOLS) -> Path:
    """Folder with the tools; built on the first call (about five minutes on two cores).

    Args:
        cache: folder that outlives the call.
        tools: which of them.
    """
    version = metadata.version("llama-cpp-python")
    build = cache / f"llama-cpp-python-{version}"
    folder = build / "build" / "bin"
    if all((folder / tool).is_file() for tool in tools):
        return folder
    for program in ("cmake", "make"):
        if shutil.which(program) is None:
            sys.exit(f"{program} is needed to build llama.cpp's tools; install it and try again.")
    print(f"Building {', '.join(tools)} from the sdist of llama-cpp-python {version} (once, about five minutes) ...")
    build.mkdir(parents=True, exist_ok=True)
    log = build / "build.log"
    source = build / f"llama_cpp_python-{version}" / "vendor" / "llama.cpp"
    with log.open("w", encoding="utf-8") as output:

        def run(*command: str) -> None:
            if subprocess.run(command, cwd=build, stdout=output, stderr=output, check=False).returncode != 0:
                sys.exit(f"{' '.join(command[:4])} ... failed; see {log}")

        if not source.is_dir():
            pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python")
            run(*pip, f"llama-cpp-python=={version}", "-d", ".")
            with tarfile.open(next(build.glob("llama_cpp_python-*.tar.gz"))) as archive:
                archive.extractall(build, filter="data")
        options = ["-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"]
        options += [f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER")]
        run("cmake", "-S", str(source), "-B", "build", *options)
        run("cmake", "--build", "build", "--parallel", str(os.cpu_count() or 1), "--target", *tools)
    return folder
