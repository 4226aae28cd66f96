"""Importing a module of a large package alone."""

from __future__ import annotations

import subprocess
import sys


def test_a_module_comes_without_what_its_package_imports() -> None:
    """And whoever imports the package afterwards gets all of it, with the same module."""
    code = """
import sys
from gguf_harness.errors import import_alone
from gguf_harness.engine.c_api import llama_cpp as c_api

functions = import_alone("scipy.special", "_ufuncs")
assert import_alone("scipy.special", "_ufuncs") is functions
assert not {"llama_cpp", "llama_cpp.llama", "scipy.special", "scipy.special._orthogonal"} & set(sys.modules)

import llama_cpp, scipy.special
assert llama_cpp.Llama and llama_cpp.llama_cpp is c_api and llama_cpp.llama_decode is c_api.llama_decode
assert scipy.special.log_softmax and scipy.special.stdtrit(3, 0.9) == functions.stdtrit(3, 0.9)
assert import_alone("scipy.special", "_ufuncs") is functions
for package, module in (("missing", "part"), ("scipy.special", "missing")):
    try:
        import_alone(package, module)
    except ImportError:
        continue
    raise AssertionError(package)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
