"""`make gpu-check`: what a machine with an NVIDIA GPU, and without a network, says about this harness.

    python -m tests.gpu_check --wheels DIR --sdist llama_cpp_python-0.3.36.tar.gz

Steps run one after the other, each in a process of its own with a limit of its own, ten minutes in all. The modules
`__main__`, `plan`, `running`, `verdicts`, `table`, `machine`, `cuda_build` and `environment` need Python 3.11 and its
standard library alone: they run before anything is installed. `docs/devices.md` says what is assumed about devices.
"""
