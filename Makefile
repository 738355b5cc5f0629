# make compare: compare the concurrency models.   make test: run the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Tests mostly wait, for a timeout or for each other's CPU; so there are more of them than CPUs.
JOBS ?= 6
# The cases of the matrix assert times; most of them wait, and those that take all of two cores
# are not put beside others.
STRESS_JOBS ?= 3

.DEFAULT_GOAL := help
.PHONY: help install compare test test-ci test-all test-pythons coverage oracles stress lint format lock release audit clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed ## Create .venv with everything pinned in requirements.lock

# Two steps, because --require-hashes has no hash for a working directory: first everything that
# is pinned (the build backend included), then this project, with nothing left to resolve.
$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "echoserver needs Python 3.11 or later; try: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

compare: install ## Compare the concurrency models under 400 clients; ARGS="..." is passed on
	@$(BIN)/echoload compare $(ARGS)

test: install ## Run the default tests; ARGS="..." is passed on to pytest
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup $(ARGS)

test-ci: install ## Run what CI runs besides the default tests
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadgroup -m ci $(ARGS)

test-all: install ## Run every test, the slow ones too; not those that repeat for half an hour
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup -m "not repeats" $(ARGS)

test-pythons: ## Run the default tests on every Python from 3.11 on this machine; PYTHONS="..." for some
	JOBS=$(JOBS) .ci/pythons $(PYTHONS)

# A few tests fail while they are measured, because another user cannot write what was measured, or
# because tracing takes the time that they bound: the report is made all the same. Nothing is measured
# of interpreters that run without site: the fork server of `process`, the grader's keeper.
MEASURED = COVERAGE_FILE=$(CURDIR)/build/coverage/data $(BIN)/coverage
coverage: install ## Measure which lines the default tests run, in every process that they start
	rm -rf build/coverage && mkdir -p build/coverage
	-$(MEASURED) run -m pytest -q -n $(JOBS) --dist loadgroup $(ARGS)
	$(MEASURED) combine -q build/coverage
	$(MEASURED) report --ignore-errors

oracles: install ## Install scipy, which the statistics are held to where it is there
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "scipy>=1.11"

# What a run found; of a shard, build/stress-1-of-4.jsonl.
FOUND = build/stress$(if $(SHARD),-$(subst /,-of-,$(SHARD))).jsonl
stress: install ## Put every backend through every fault, and make docs/reliability.md; SHARD=K/N for a part
	rm -f $(FOUND)
	$(BIN)/python -m pytest -n $(STRESS_JOBS) -m stress tests/stress --stress-results $(FOUND) $(if $(SHARD),--shard $(SHARD)) $(ARGS)
	$(if $(SHARD),,$(BIN)/python -m tests.stress.report --by "make stress STRESS_JOBS=$(STRESS_JOBS)" $(FOUND) > docs/reliability.md)

lint: install ## ruff, formatting, mypy --strict, contracts on imports, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/codespell -D - -D .phrases.txt

format: install ## Mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## Pin the newest versions in requirements.lock (needs uv)
	uv pip compile --universal --upgrade --generate-hashes --no-emit-find-links --python-version 3.11 \
	  --group dev --custom-compile-command "make lock" pyproject.toml -o requirements.lock

release: ## Make a release: make release VERSION=0.2.0 (RELEASING.md)
	.ci/release $(VERSION)

audit: install ## Ask for known vulnerabilities of what requirements.lock pins (needs the network)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --target $(VENV)/audit pip-audit
	PYTHONPATH=$(VENV)/audit $(BIN)/python -m pip_audit --requirement requirements.lock --disable-pip --require-hashes

clean: ## Remove .venv and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache
