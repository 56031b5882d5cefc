# Development tasks. .ci/run does the same as `make test`.
SHELL := bash
PY := .venv/bin/python
LOCALE := lorafit/locale

.PHONY: setup test test-slow lint format locale docs site benchmarks pictures check

setup: ## create .venv with all packages
	@set -euo pipefail; source scripts/setup.sh; setup dev

test: ## run the fast tests
	./run_tests.sh

test-slow: ## run the slow tests, which train models
	./run_tests.sh -m slow

lint: setup ## check style and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: setup ## apply ruff's formatting and fixes
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

locale: setup ## add new texts to the Chinese catalog (translate the empty entries by hand) and compile it
	mkdir -p build
	$(PY) -m babel.messages.frontend extract -k _ -k what:2 -k how:2 -k Field:2 -k noted --no-location --sort-output --project lorafit -o build/lorafit.pot lorafit
	$(PY) -m babel.messages.frontend update -i build/lorafit.pot -d $(LOCALE) -D lorafit -l zh_CN -N --ignore-obsolete --ignore-pot-creation-date
	for domain in lorafit lorafit-0.1; do $(PY) -m babel.messages.frontend compile -d $(LOCALE) -D $$domain -l zh_CN; done

pictures: setup ## train the demo in both languages and draw docs/pictures/ from its events (takes minutes)
	$(PY) scripts/make_pictures.py

docs: setup ## write docs/cli.md from the settings
	$(PY) scripts/make_docs.py

site: ## build the documentation site into build/site; fail on broken links
	scripts/build_site.sh

benchmarks: setup ## write docs/benchmarks.md from benchmarks/results (measures nothing)
	$(PY) benchmarks/page.py

check: test lint ## all checks that a commit must pass
