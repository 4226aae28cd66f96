# make demo, make docs, make test, make coverage, make lint, make bench: on a machine with Python >= 3.11, a C++ compiler
# and make. make gpu-check: with an NVIDIA GPU.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Collecting all tests takes longer than running those few.
EXCLUSIVE = $$(grep -rl --include='test_*.py' mark.exclusive tests)
VIEWS := harness/gguf_harness/views
NPM := $(VIEWS)/node_modules/.package-lock.json
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# llama.cpp's code for AMX dies of an illegal instruction where GCC compiled it: ggml-org/llama.cpp, pull request 26954.
NO_AMX := $(shell echo | $${CXX:-c++} -mno-amx-tile -fsyntax-only -x c++ - 2>/dev/null && \
    echo "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16")
# For llama.cpp, and for its tools in the benchmarks.
export CFLAGS := $(NO_AMX) $(CFLAGS)
export CXXFLAGS := $(NO_AMX) $(CXXFLAGS)
# Nothing here loads libmtmd, llama.cpp's library for images and sound.
INSTALL = CMAKE_ARGS="-DLLAVA_BUILD=OFF $$CMAKE_ARGS" $(PIP) install --constraint constraints.txt --editable

.PHONY: demo docs test coverage lint bench gpu-check views check-views clean

demo: $(VENV)/.demo
	@echo "Measuring tiny, the model that comes along, and six quantizations of it."
	@$(BIN)/python -m pytest suites/quant; status=$$?; \
	if [ $$status -eq 1 ]; then echo "Some models failed their gates. That is a finding: the table says which, and why."; \
	else exit $$status; fi

# The site for learners. mkdocs-material advertises its successor on each build.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .cache/docs/measured
	@$(BIN)/python -m mkdocs build --strict --quiet
	@echo "Open site/index.html"

# Its demo run is measured once: after a change of the code, the measurements come from the cache.
.cache/docs/measured: $(shell find suites fixtures harness/gguf_harness -name '*.py' -o -name '*.toml') | $(VENV)/.dev
	@echo "Measuring tiny and three quantizations of it for the site: two minutes the first time."
	@rm -rf .cache/docs/runs
	@$(BIN)/python -m pytest suites/quant suites/attention suites/heads suites/layers suites/embeddings --quiet \
	  --models=tiny --gguf-quants=Q8_0,Q4_K_M,Q2_K --gguf-results=.cache/docs; status=$$?; \
	if [ $$status -eq 1 ]; then echo "Some models failed their gates. That is a finding, and the site shows it."; \
	else exit $$status; fi
	@touch $@

# Tests start more than a thousand Python processes, each of which would compile the whole package.
test coverage: export PYTHONDONTWRITEBYTECODE =
test: $(VENV)/.dev lint
	$(BIN)/python -m pytest tests -m "not exclusive" -n 2 --dist loadgroup --timeout=600
	$(BIN)/python -m pytest $(EXCLUSIVE) -m exclusive --timeout=600

# The same tests, with every process measured: sessions, workers and servers too.
coverage: $(VENV)/.dev
	rm -rf .cache/coverage
	mkdir -p .cache/coverage
	$(BIN)/coverage run -m pytest tests -m "not exclusive" -n 2 --dist loadgroup --timeout=600
	$(BIN)/coverage run -m pytest $(EXCLUSIVE) -m exclusive --timeout=600
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

lint: $(VENV)/.dev check-views
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m tests.bench.compare_with_llama_cpp
	$(BIN)/python -m tests.bench.attention_overhead
	$(BIN)/python -m tests.bench.speed_ratio
	$(BIN)/python -m tests.bench.speed_at_depth
	$(BIN)/python -m tests.bench.cached_suite
	$(BIN)/python -m tests.bench.live_latency
	$(BIN)/python -m tests.bench.time_to_verdict
	$(BIN)/python -m tests.bench.side_by_side
	$(BIN)/python -m tests.bench.compare_with_export_lora
	$(BIN)/python -m tests.bench.forecast
	$(BIN)/python -m tests.bench.ray_overhead
	$(BIN)/python -m tests.bench.ray_two_nodes

# On a machine with an NVIDIA GPU, without a network: make gpu-check GPU_CHECK="--wheels DIR --sdist FILE".
gpu-check:
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m tests.gpu_check $(GPU_CHECK)

# The pictures of reports, bundled with what they need from npm (Node 18 or newer). The bundle is stored in the package.
views: $(NPM)
	cd $(VIEWS) && npm run --silent build

$(NPM): $(VIEWS)/package-lock.json
	cd $(VIEWS) && npm ci --silent
	@touch $@

# Where npm or its registry cannot be reached, this is not checked, and says so.
check-views:
	@if command -v npm >/dev/null && $(MAKE) --silent $(NPM); then cd $(VIEWS) && npm run --silent check; \
	else echo "The bundle of views was NOT checked against its sources: npm, or its registry, is out of reach."; fi

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache dist build site

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# llama-cpp-python is compiled here, once: about five minutes on two cores.
$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing (llama.cpp is compiled once: about five minutes on two cores) ..."
	$(INSTALL) '.[serve]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing (llama.cpp is compiled once: about five minutes on two cores) ..."
	$(INSTALL) '.[models,dev]'
	@touch $@
