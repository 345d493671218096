# The two commands of a newcomer are `make demo` and `make test`; both make .venv when it is absent.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DONE   := $(VENV)/.installed
LOCK   := requirements/lock.txt requirements/torch.txt

.PHONY: demo test lint docs figures lock release clean

demo: $(DONE)
	$(BIN)/mvlm demo --out demo

# A worker that a hanging test ended is not started again: xdist would wait for it for ever.
test: $(DONE)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --max-worker-restart 0

lint: $(DONE)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site, in site/; a link that leads nowhere fails it.
docs: $(DONE)
	$(BIN)/mkdocs build --quiet

# Which figures are stale, how long each takes to renew, and the command for it; the pages are marked.
figures: $(DONE)
	$(BIN)/python -m benchmarks.stale

# The newest versions within the bounds of pyproject.toml, and what is different with them. Test them before you commit.
lock: $(DONE)
	$(BIN)/python requirements/resolve.py lock

# What can be published: a source distribution and the wheel built from it, in dist/.
release: $(DONE)
	rm -rf dist
	$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python
	ls dist

# All that the lock holds, each file by its hash; then torch, which takes what its own build needs besides.
$(DONE): pyproject.toml $(LOCK)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/lock.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements/torch.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

clean:
	rm -rf $(VENV) demo dist site
