# What can be done here? `make check` is what .ci/run does.
SHELL := bash
PY := .venv/bin/python
LOCALE := lorafit/locale

.PHONY: setup test test-slow lint format locale docs benchmarks pictures check

setup: ## .venv with everything
	@set -euo pipefail; source scripts/setup.sh; setup dev

test: ## the fast tests
	./run_tests.sh

test-slow: ## the tests that train for real
	./run_tests.sh -m slow

lint: setup ## style and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: setup ## let ruff mend what it can
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

locale: setup ## carry new texts into the Chinese catalogue (fill in the empty ones) and compile it
	mkdir -p build
	$(PY) -m babel.messages.frontend extract -k _ -k what:2 -k how:2 -k Field:2 -k noted --no-location --sort-output --project lorafit -o build/lorafit.pot lorafit
	$(PY) -m babel.messages.frontend update -i build/lorafit.pot -d $(LOCALE) -D lorafit -l zh_CN -N --ignore-obsolete --ignore-pot-creation-date
	$(PY) -m babel.messages.frontend compile -d $(LOCALE) -D lorafit -l zh_CN

pictures: setup ## train the demo in both languages and draw docs/pictures/ from what it said: minutes
	$(PY) scripts/make_pictures.py

docs: setup ## write docs/cli.md anew from the settings
	$(PY) scripts/make_docs.py

benchmarks: setup ## write docs/benchmarks.md anew from benchmarks/results (measures nothing)
	$(PY) benchmarks/page.py

check: test lint ## all that a commit must pass
