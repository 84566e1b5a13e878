# `make walkthrough` and `make test` are all that a newcomer types: every target first makes .venv from
# requirements.lock, once, with $(PYTHON).

PYTHON ?= python3
CUDA ?= cu126
IP ?= 127.0.0.1
BIN := .venv/bin
INSTALLED := .venv/.installed
NOTEBOOKS := $(wildcard notebooks/*.ipynb)
SOLUTIONS := $(wildcard notebooks/exercises/solutions/*.ipynb)
# A committed notebook keeps its outputs, counts and ids, and nothing of the machine that it ran on but Python's
# version: without it JupyterLab would add its own, and every notebook would be modified as soon as it is opened.
NBSTRIPOUT := $(BIN)/nbstripout --keep-output --keep-count --keep-id --extra-keys \
	"metadata.papermill cell.metadata.papermill"

# A file's tests share what they prepare, so a file stays on one worker; and two workers with a thread each finish sooner.
# A make that a test runs gets none of this one's flags.
PYTEST := MAKEFLAGS= OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --dist loadscope --no-loadscope-reorder

# Containers often forbid Python to keep what it compiles; then every kernel would compile all libraries anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help walkthrough lab bundle test test-fast test-slow test-gpu lint strip notebooks exercises handouts assets lock

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s%s\n", $$1, $$2 }' Makefile

walkthrough: $(INSTALLED) ## run the six notebooks on the tiny profile and write the report
	@$(BIN)/ftlib run --profile tiny

# JupyterLab would ask whether to fetch news from the network; no option of its command line says no.
lab: $(INSTALLED) ## open the notebooks in JupyterLab
	@mkdir -p .venv/share/jupyter/lab/settings
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": false}}' \
		> .venv/share/jupyter/lab/settings/overrides.json
	@$(BIN)/jupyter lab --ip $(IP) --notebook-dir . --LabApp.default_url=/lab/tree/notebooks/01_setup.ipynb

bundle: $(INSTALLED) ## pack outputs/bundle, which installs without a network; PYTHONS="3.11 3.12"
	@$(BIN)/python -m ftlib.machine.bundle $(PYTHONS)

# Side by side: mypy computes on one core, and the tests leave one idle while they wait.
test: $(INSTALLED) ## check style and types, and all that a change can break, each once
	@$(MAKE) -s -j 2 lint test-fast

test-fast: $(INSTALLED)
	@$(PYTEST)

test-slow: $(INSTALLED) ## run the rest: whole trainings, other seeds, kills at any moment
	@$(PYTEST) -m slow

# With a torch of the machine's own and no network, first
# grep -v ^torch== requirements.lock | pip install --no-deps --no-index --find-links wheels -r /dev/stdin
# In two parts: ARGS="-k TestLoaded", then ARGS="-k 'not TestLoaded'".
test-gpu: $(INSTALLED) ## what only a GPU of 80 GB can show, about 15 minutes; RIG=tiny rehearses it on a CPU
	@RIG=$(or $(RIG),gpt-oss-20b) $(BIN)/pytest -m gpu tests/gpu $(ARGS)

lint: $(INSTALLED) ## check style, types and the notebooks' metadata
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check
	@$(BIN)/mypy
	@$(NBSTRIPOUT) --verify $(NOTEBOOKS) $(SOLUTIONS)

strip: $(INSTALLED) ## remove what the machine left in the notebooks' metadata
	@$(NBSTRIPOUT) $(NOTEBOOKS) $(SOLUTIONS)

# In a copy of its own, or training would find that it was finished before and have nothing left to do.
notebooks: $(INSTALLED) ## execute the committed notebooks, and renew the README's picture
	@rm -rf outputs/committed && mkdir -p outputs/committed && cp -r notebooks requirements.lock outputs/committed
	@$(BIN)/jupyter nbconvert --log-level ERROR --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--KernelManager.transport_encryption=auto $(addprefix outputs/committed/,$(NOTEBOOKS) $(SOLUTIONS))
	@cp $(addprefix outputs/committed/,$(NOTEBOOKS)) notebooks
	@cp $(addprefix outputs/committed/,$(SOLUTIONS)) notebooks/exercises/solutions
	@$(MAKE) -s strip exercises
	@$(BIN)/jupyter nbconvert --log-level ERROR --to markdown --output-dir outputs/pictures notebooks/05_push_and_infer.ipynb
	@mv outputs/pictures/05_push_and_infer_files/*.png notebooks/images/agreement.png

exercises: $(INSTALLED) ## make the learners' exercises from those with solutions
	@$(BIN)/python -m ftlib.runner.exercises

handouts: $(INSTALLED) ## for a workshop: the exercises as pages with and without solutions, and slides
	@$(BIN)/python -m ftlib.runner.handouts

assets: $(INSTALLED) ## rebuild the rehearsal's tiny model and sample data set
	@$(BIN)/python -m ftlib.rehearsal.build

# A pin moves only where pyproject.toml asks for it, or with `make lock UPGRADE=--upgrade`.
# environment.yml keeps its head and gets the pins that hold on Azure ML's Python, with torch's build for CUDA 12.6: it runs
# on driver 525 and later, while CUDA 13 wants 580, and Azure's machines are reported to have 535. `make lock CUDA=cu130`
# asks for another; on machines of your own the set-up chooses by the driver.
# requirements.hashes has the SHA-256 of every file of a pinned release; not torch's, whose builds come from several places.
lock: $(INSTALLED) ## write requirements.lock, its hashes and environment.yml from pyproject.toml
	@$(BIN)/uv pip compile -q pyproject.toml --group dev --extra azure --universal --python-version 3.11 $(UPGRADE) \
		--annotation-style line --custom-compile-command "make lock" -o requirements.lock
	@sed -i -E -e '/^(cuda-|nvidia-|triton=)/d' \
		-e "2a # CUDA's packages are left out: torch itself asks for them where its CUDA build is installed." requirements.lock
	@$(BIN)/uv pip compile -q requirements.lock --no-deps --universal --python-version 3.11 --generate-hashes \
		--no-emit-package torch --no-annotate --custom-compile-command "make lock" -o requirements.hashes
	@sed -i '/- pip:/q' environment.yml
	@echo "      - --extra-index-url https://download.pytorch.org/whl/$(CUDA)" >> environment.yml
	@$(BIN)/uv pip compile -q requirements.lock --no-deps --python-version 3.12 --python-platform linux --no-header \
		--no-annotate \
		| sed -e '/^torch==/s/$$/+$(CUDA)/' -e 's/^/      - /' >> environment.yml

$(INSTALLED): requirements.lock requirements.hashes pyproject.toml
	@$(PYTHON) ftlib/machine/install.py
