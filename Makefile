# Everything runs in .venv, which is made on first use. `make help` lists what there is to make.

.DEFAULT_GOAL := help
.PHONY: help venv demo test faults soak bench bench-quick bench-peers bench-micro check lint coverage clean

.NOTPARALLEL: # two installations at once in one environment would break it

BIN := .venv/bin
# Exported, so that .ci/venv sees a PYTHON= of the command line.
export PYTHON
# No program asks for a password or a choice while it is being made.
export PIP_NO_INPUT := 1

TESTS ?= tests
# More than most small machines have cores: these tests wait more than they compute.
JOBS ?= 3
# The engine: modules without I/O, whose own unit tests reach at least 95 % of their branches.
PURE := constants errors models json_door plugins pipes expressions bindings filter schema secret_references store graph topology \
	orchestrator retry selection tags task_input pipeline pipeline_formats pipeline_networkx pipeline_validation
PURE_FLOOR := 95

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' Makefile

# Hidden: every target that needs the environment makes it.
venv: .venv/.installed-dev

.venv/.installed-%: pyproject.toml
	@bash .ci/venv $*

demo: .venv/.installed-demo ## Catalogue a folder of real files on worker processes: make demo DIR=~/Pictures
	@$(BIN)/python examples/library/demo.py $${DIR:+--dir "$$DIR"} $${OUT:+--out "$$OUT"}

test: venv ## Run the tests; those that need a server are skipped where there is none (TESTS=tests/unit, JOBS=4)
	$(BIN)/python -m pytest $(TESTS) -n $(JOBS)

# Every fault on every store by every broker; hours, where tests/faults has them, are asked for by name.
faults: venv ## Make every fault happen, on every store and broker, and keep the table (TESTS=tests/faults/test_clocks.py)
	DAGABAAZ_REQUIRE_SERVICES=1 DAGABAAZ_FAULTS=full DAGABAAZ_FAULTS_REPORT=docs/explanation/reliability.md \
		$(BIN)/python -m pytest $(if $(filter tests,$(TESTS)),tests/faults,$(TESTS)) -n $(JOBS) --timeout 1800

LOOPS ?= 200
soak: venv ## Runs of 500 tasks under random kills, over all stores and brokers, a line for each in soak.log (LOOPS=200)
	DAGABAAZ_REQUIRE_SERVICES=1 DAGABAAZ_FAULTS=full DAGABAAZ_SOAK_LOOPS=$(LOOPS) DAGABAAZ_SOAK_LOG=soak.log \
		$(BIN)/python -m pytest tests/faults/test_random_kills.py -n $(JOBS)

# Hours on two cores; `make bench ARGS="--pairs sqlite-redis --shapes fan"` is a part of it. Others on the machine make
# it noise.
BENCH := build/benchmarks
bench: .venv/.installed-bench ## Measure every shape on every pair, with plots (ARGS="--pairs postgresql-redis --rounds 3")
	$(BIN)/python -m tests.benchmarks --out $(BENCH) --plots $(BENCH) $(ARGS)

bench-quick: venv ## Measure the main shapes on every pair, in four minutes
	$(BIN)/python -m tests.benchmarks --out $(BENCH)/quick --shapes fan-1000,chain-40,layers-10x50 --no-counts --idle 0 \
		--budget 210 $(ARGS)

bench-peers: venv ## Measure other libraries, each in an environment of its own
	$(BIN)/python -m tests.benchmarks.peers --out $(BENCH)/peers $(ARGS)

bench-micro: .venv/.installed-bench ## Measure the engine alone, in memory
	$(BIN)/python -m pytest tests/benchmarks/micro -o addopts="-q -p no:cacheprovider" $(ARGS)

check: lint coverage ## Everything that CI checks: style, types, layers, tests with coverage

lint: venv ## Style, types, and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The unit tests are measured alone first: the engine's floor is not to be reached by way of a worker.
coverage: venv ## All tests, with branch coverage and the floor of the engine
	$(BIN)/coverage erase
	$(BIN)/python -m pytest tests/unit -n $(JOBS) --cov --cov-report=
	@for module in $(PURE); do \
		$(BIN)/coverage report --include=dagabaaz_celery/$$module.py --fail-under=$(PURE_FLOOR) --format=total >/dev/null || \
			{ $(BIN)/coverage report --show-missing --include=dagabaaz_celery/$$module.py; \
			echo "dagabaaz_celery/$$module.py: its unit tests have to cover $(PURE_FLOOR) % of it"; exit 1; }; \
	done
	$(BIN)/python -m pytest tests --ignore=tests/unit -n $(JOBS) --cov --cov-append --cov-report=term:skip-covered

clean: ## Remove what the other targets made
	rm -rf .venv build dist *.egg-info .coverage .coverage.* .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache examples/library/report examples/library/.dagabaaz examples/shop/.dagabaaz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
