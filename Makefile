# Everything a person types. `make help` lists it.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

# A process a core; each takes whole files, so that what a file's tests share is made once. CONTRIBUTING.md has the tiers.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo walkthrough test test-all soak check format benchmarks sweep downstream reproduce clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20

$(STAMP): pyproject.toml foundation/torchvision_fit.py
	@echo "Installing into $(VENV): torch and its friends are large (several GB with CUDA); pip settings are yours."
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	$(BIN)/python -m foundation.torchvision_fit
	touch $(STAMP)

demo: $(STAMP) ## install if needed, run the demonstration on phantoms, print where the report is
	$(BIN)/fedpretext simulate configs/demo.yaml

walkthrough: $(STAMP) ## a real federation of three pretend hospitals on this machine (needs nginx; docs/walkthrough.md)
	PATH="$(abspath $(BIN)):$$PATH" docs/walkthrough.sh runs/walkthrough-$$(date +%Y%m%d-%H%M%S)

test: $(STAMP) ## install if needed, run the quick tests (under 10 minutes on two cores)
	$(PYTEST) -m "not slow and not soak"

test-all: $(STAMP) ## the quick tests and the slow ones: real programs, whole studies (under 25 minutes)
	$(PYTEST) -m "not soak" --hypothesis-profile thorough

soak: $(STAMP) ## the tests that take minutes each, and every property on many more examples
	$(PYTEST) -m "soak or hypothesis" --hypothesis-profile soak --timeout 3600

check: $(STAMP) ## format, lint, types, and all of test-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test-all

format: $(STAMP) ## put the code into its format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

benchmarks: $(STAMP) ## measure speed and memory (about 20 minutes); writes benchmarks/results/
	$(BIN)/python -m benchmarks.run

sweep: $(STAMP) ## every method against no pretraining, cell by cell: make sweep DATA=FOLDER [CELLS=1]
	@test -n "$(DATA)" || { echo "make sweep DATA=FOLDER: the folder that holds lgg_mri_128 and busi_224" >&2; exit 2; }
	$(BIN)/python -m benchmarks.comparisons.sweep --root $(DATA) $(if $(CELLS),--cells $(CELLS))

downstream: $(STAMP) ## two encoders a dataset on downstream tasks: make downstream DATA=FOLDER [ONLY=retina]
	@test -n "$(DATA)" || { echo "make downstream DATA=FOLDER: the folder that holds the datasets' folders" >&2; exit 2; }
	$(BIN)/python -m benchmarks.comparisons.downstream --root $(DATA) $(if $(ONLY),--only $(ONLY))

reproduce: $(STAMP) ## make one published comparison again, under 15 minutes: make reproduce DATA=FOLDER
	@test -n "$(DATA)" || { echo "make reproduce DATA=FOLDER: the folder that holds busi_224" >&2; exit 2; }
	$(BIN)/python -m benchmarks.comparisons.downstream --root $(DATA) --only breast-ultrasound

clean: ## remove the virtual environment and caches (run folders stay)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
