# README.md says what each target is for. Everything is made in this folder; nothing is installed elsewhere.
PYTHON ?= python3.11
PORT ?= 8000
PRESET ?=
ONCE ?=
FUZZ_SECONDS ?= 3600

# Whole files, in the order of their names, so that what files share is made once and the longest one begins early.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
# Trust the system's certificates, as pip does: a hospital's proxy may sign with one that only the machine has.
export UV_SYSTEM_CERTS := true

.PHONY: help demo serve repro mlflow-ui test quick test-slow test-load fuzz bench-serving bench-overhead bench-startup bench-probes bench-training bench-score soak lint lock licences sbom audit clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*##/\t/' | expand -t 12

demo: .venv/.ready .venv-serving/.ready  ## the whole path on rendered smears: dvc repro, registry, server, one prediction (ONCE=1: stop there)
	python -m pipeline.demo --port $(PORT) $(if $(ONCE),--once)

serve: .venv-serving/.ready  ## the champion of register.name alone, on PORT; with PRESET=all4 of recipes/all4; or LEUKDETECT_MODEL
	name=$$(cd ./$(if $(PRESET),recipes/$(PRESET)) && PYTHONPATH=$(CURDIR):$$PYTHONPATH python -c 'from pipeline import params; print(params.load().register_.name)') && \
	  LEUKDETECT_MODEL=$${LEUKDETECT_MODEL:-models:/$$name@champion} LEUKDETECT_PORT=$(PORT) exec .venv-serving/bin/python -m serving

repro: .venv/.ready  ## dvc repro; with PRESET=all4 (or another of presets/) of the recipe in recipes/all4, which is made if need be
	$(if $(PRESET),python -m pipeline.presets $(PRESET))
	$(if $(PRESET),cd recipes/$(PRESET) &&) dvc repro

mlflow-ui: .venv/.ready  ## the embedded MLflow at localhost:5000
	mlflow ui --backend-store-uri $(MLFLOW_TRACKING_URI)

test: .venv/.ready .venv-serving/.ready .venv-sbom/.ready lint  ## lint, types and tests, all but the slow ones
	pytest -m "not slow" $(PARALLEL)

ALONE := tests/load/test_budgets.py tests/load/test_faults.py
test-slow: .venv/.ready .venv-serving/.ready  ## the tests that take minutes each; those under load have the machine alone
	pytest -m slow $(ALONE:%=--ignore=%) $(PARALLEL)
	pytest -m slow $(ALONE)

test-load: .venv/.ready .venv-serving/.ready  ## the server under faults: killed, swapped, full disk, stalled clients, 10,000 mutated images
	pytest -m slow tests/load

fuzz: .venv/.ready  ## an hour of mutated images, requests and model files (FUZZ_SECONDS=60: shorter)
	python -m tests.load.fuzz --seconds $(FUZZ_SECONDS)

# Run benchmarks on an idle machine. They share a 224 px model, trained on the demo's images, and their peers' environments.
.benchmarks/model224: .venv/.ready
	test -f data/manifest.csv || dvc repro validate
	python -m benchmarks.model224 --out $@

bench-serving: .benchmarks/model224 .venv-serving/.ready  ## the server beside eight others, with either file (two hours)
	python -m benchmarks.serving --models $<

bench-overhead: .venv/.ready .venv-serving/.ready  ## processor time per request outside decoding and the model, beside a naive app
	python -m benchmarks.overhead

bench-startup: .benchmarks/model224 .venv-serving/.ready  ## time to ready and memory
	python -m benchmarks.startup --models $<

bench-probes: .benchmarks/model224 .venv-serving/.ready  ## how fast /livez and /readyz answer under any load (about 3 minutes)
	python -m benchmarks.probes --models $<

bench-training: .venv/.ready  ## training beside plain Keras, then 1, 4 and 16 times the images (about an hour)
	python -m benchmarks.training
	python -m benchmarks.training --growth

bench-score: .benchmarks/model224  ## batch scoring beside a bare onnxruntime loop (about 5 minutes)
	python -m benchmarks.score --models $<

soak: .benchmarks/model224 .venv-serving/.ready  ## ten minutes of load and 20 swaps: memory stays flat
	python -m benchmarks.soak --models $<

quick: lint  ## lint, types and the tests that need no TensorFlow, process, browser or service (under a minute)
	pytest -q --quick -m "not slow"

lint: .venv/.ready
	ruff check .
	ruff format --check .
	mypy

lock: .venv/.ready  ## requirements/*.txt from requirements/*.in, keeping what still fits
	@# One resolution for all: the smaller locks are parts of dev.txt.
	cd requirements && $(LOCK) dev.in -o dev.txt
	cd requirements && $(LOCK) sbom.in -o sbom.txt
	cd requirements && for name in deploy pipeline ray serving uv; do $(LOCK) $$name.in -c dev.txt -o $$name.txt; done
	cd requirements && $(LOCK) gpu.in --override gpu-overrides.txt -c dev.txt -o gpu.txt
	cd requirements && $(LOCK) ../mlflow/requirements.in -c dev.txt -o ../mlflow/requirements.txt

LOCK := uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-annotate

licences: .venv/.ready .venv-serving/.ready  ## docs/licences.md, and whether every licence is allowed
	python -m deploy.licences

SBOM := reports/sbom
sbom: .venv-sbom/.ready  ## reports/sbom/*.json: what is installed, as CycloneDX, from the locks
	mkdir -p $(SBOM)
	@# It reads no version that the project takes from its code.
	version=$$(sed -n 's/^__version__ = \("[^"]*"\).*/\1/p' leukdetect/__init__.py); sed "s/^dynamic = .*/version = $$version/" pyproject.toml > $(SBOM)/pyproject.toml
	for name in serving pipeline ray; do .venv-sbom/bin/cyclonedx-py requirements requirements/$$name.txt --pyproject $(SBOM)/pyproject.toml --output-reproducible --output-file $(SBOM)/$$name.json || exit 1; done; rm $(SBOM)/pyproject.toml

audit: .venv-sbom/.ready  ## known vulnerabilities of what the locks hold (needs: PyPI's or OSV's service)
	for lock in requirements/*.txt mlflow/requirements.txt; do \
	  case $$lock in *overrides*) continue ;; esac; \
	  echo "$$lock"; .venv-sbom/bin/pip-audit --strict --progress-spinner off --require-hashes --disable-pip -r $$lock || failed=1; \
	done; test -z "$$failed"

clean:  ## delete everything that was made, except the environments
	rm -rf data models .state .serving mlflow.db mlartifacts reports/figures reports/plots reports/history .dvc/cache .dvc/tmp

# uv installs in seconds. Where it cannot (a mirror that only pip.conf names), pip does the same, slower. It compiles
# bytecode, as pip does: where Python may not write any, every process would compile TensorFlow anew (docs/decisions, 37).
.venv/.ready: requirements/dev.txt requirements/uv.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "Python 3.11 is needed: make PYTHON=/path/to/python3.11 …")'
	$(PYTHON) -m venv .venv
	.venv/bin/pip install -q --disable-pip-version-check --require-hashes -r requirements/uv.txt
	uv pip install -q --compile-bytecode --python .venv --require-hashes -r requirements/dev.txt || \
	  .venv/bin/pip install -q --require-hashes -r requirements/dev.txt
	touch $@

.venv-serving/.ready: requirements/serving.txt .venv/.ready
	$(PYTHON) -m venv .venv-serving
	uv pip install -q --python .venv-serving --require-hashes -r requirements/serving.txt || \
	  .venv-serving/bin/pip install -q --require-hashes -r requirements/serving.txt
	touch $@

# An environment of its own, since its packages slow every import of Great Expectations (docs/decisions, 37).
.venv-sbom/.ready: requirements/sbom.txt .venv/.ready
	$(PYTHON) -m venv .venv-sbom
	uv pip install -q --python .venv-sbom --require-hashes -r requirements/sbom.txt || \
	  .venv-sbom/bin/pip install -q --require-hashes -r requirements/sbom.txt
	touch $@
