# One door for people, pre-commit and CI. `make serve` and `make test` are all you need to begin.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PORT ?= 8000
RUN_ID ?=
CHECKPOINT ?=
SERVE_OPTIONS ?=
MAX_RISK ?= 0.05
SAMPLE := madewithml/sample/projects.csv
# The tests run in two processes that take about as long as each other: those of serving but for some files, and the rest.
BESIDE := $(addprefix tests/serving/test_,$(addsuffix .py,clients command_line trial))

CLIENTS := .venv-clients

.PHONY: install clients demo serve test lint types bench chaos docs lock clean

install: $(VENV)/.installed  ## Virtual environment with the package, its tools and pinned versions

# torch first and by its own: left to the resolver, a plain requirement takes a newer build of several gigabytes.
$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "== installing into $(VENV) (a few minutes the first time)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet torch==2.13.0
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[encoder,openvino,dev]'
	@touch $@

clients: $(CLIENTS)/.installed  ## Environment with other servers' clients, for their tests

$(CLIENTS)/.installed: tests/clients/requirements.txt
	@echo "== installing other servers' clients into $(CLIENTS) (a minute the first time)"
	@test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	@$(CLIENTS)/bin/python -m pip install --quiet -r tests/clients/requirements.txt
	@touch $@

demo: install  ## The demo run: trained now if there is none yet
	@$(BIN)/madewithml best-run --experiment-name demo >/dev/null 2>&1 || { \
	  echo "== no demo run yet: training one on $(SAMPLE) (about two minutes)"; \
	  run_id=$$($(BIN)/madewithml train --dataset-loc $(SAMPLE) --experiment-name demo | tail -n 1); \
	  test -n "$$run_id" || exit 1; \
	  echo "== certifying its threshold on its own calibration rows"; \
	  $(BIN)/madewithml certify --run-id "$$run_id" --max-risk $(MAX_RISK) || { \
	    test $$? -eq 3 || exit 1; \
	    echo "== no certificate, as said above; that is no fault: it serves, at the default threshold"; }; \
	  echo "== for speed, some time: $(BIN)/madewithml optimize --run-id $$run_id (a minute)"; \
	}

serve: $(if $(RUN_ID),install,demo)  ## Serve RUN_ID, or the demo run, on PORT
	@run_id="$(RUN_ID)"; \
	test -n "$$run_id" || run_id=$$($(BIN)/madewithml best-run --experiment-name demo) || exit 1; \
	echo "== starting the service for run $$run_id"; \
	exec $(BIN)/madewithml serve --run-id "$$run_id" --port $(PORT) $(SERVE_OPTIONS)

test: install clients  ## Every test but the slow ones, with coverage
	@echo "== tests, in two processes (about nine minutes on two cores; the second prints at the end)"
	@rm -f .coverage .coverage.*
	@$(BIN)/coverage run -m pytest -m "not slow" tests/test_*.py $(BESIDE) > .others.log 2>&1 & others=$$!; \
	  $(BIN)/coverage run -m pytest -m "not slow" tests/serving $(addprefix --ignore=,$(BESIDE)); serving=$$?; \
	  wait $$others; status=$$?; cat .others.log; rm .others.log; \
	  test $$serving -eq 0 && test $$status -eq 0
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage report --fail-under=95

lint: install  ## Style and docstrings
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

types: install  ## mypy, strict
	@$(BIN)/mypy
	@MYPYPATH=benchmarks:benchmarks/peers $(BIN)/mypy --no-warn-return-any --no-warn-unused-ignores benchmarks/*.py

bench: install  ## Measurements; results under benchmarks/results. CHECKPOINT=DIR adds serving beside other servers
	@$(BIN)/python benchmarks/training.py --dataset-loc $(SAMPLE)
	@$(BIN)/python benchmarks/decision.py
	@$(BIN)/python benchmarks/certificates.py
	@test -z "$(CHECKPOINT)" || { $(BIN)/python benchmarks/peers/install.py \
	  && $(BIN)/python benchmarks/overhead.py --checkpoint "$(CHECKPOINT)" --dataset-loc $(SAMPLE) \
	  && $(BIN)/python benchmarks/serving.py --checkpoint "$(CHECKPOINT)" --dataset-loc $(SAMPLE); }

chaos: $(if $(CHECKPOINT),install,demo)  ## Faults under load, half an hour; results under benchmarks/results. CHECKPOINT=DIR, else the demo run
	@$(BIN)/python -m pytest -q -m slow
	@$(BIN)/python benchmarks/chaos.py --dataset-loc $(SAMPLE) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)",--run-id $$($(BIN)/madewithml best-run --experiment-name demo))

docs: install  ## Check that what the documentation shows is so
	@$(BIN)/python -m pytest -q tests/test_documentation.py

lock:  ## Write constraints.txt from the present environment
	@$(BIN)/python tools/constraints.py > constraints.txt

clean:  ## Remove what the targets made, but not the runs
	@rm -rf $(VENV) $(CLIENTS) .mypy_cache .pytest_cache .ruff_cache .coverage*
