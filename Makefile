# `make demo` and `make test` need Python 3.10+ and make. `make sql`, `install`, `uninstall` and `check DATABASE_URL=…`
# need no Python at all.

SHELL     = /bin/sh
VENV      = .venv
PG_CONFIG = pg_config
# The file of the extension is named after the version in its control file.
VERSION  := $(shell sed -n "s/^default_version *= *'\(.*\)'.*/\1/p" sql/concord.control)
SCRIPT    = build/concord--$(VERSION).sql
# Paths are relative, so that the checkout may lie anywhere; what is not relative is quoted.
PY        = $(VENV)/bin/python
ARGS      =

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv sql install uninstall demo test check bench lint types docs clean FORCE

help: ## what there is to make
	@echo "pyconcord $(VERSION). Give a command more arguments with ARGS='…'; DATABASE_URL names a server of your own."
	@echo
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1|\2/p' Makefile | \
	  while IFS='|' read -r target what; do printf '%-16s %s\n' "$$target" "$$what"; done

demo: ## the demo: edits by people, agents and jobs on the same rows, six ways
	@sh tools/venv.sh "$(VENV)" cli,embedded
	$(VENV)/bin/pyconcord demo $(ARGS)

test: ## the tests, on an embedded PostgreSQL (PYCONCORD_PG=16 or 18) or DATABASE_URL
	@sh tools/venv.sh "$(VENV)" test
	$(PY) -m pytest $(ARGS)

sql: $(SCRIPT) ## build/concord--VERSION.sql from sql/

# Always put together anew (a file that was taken away leaves no newer one behind), touched only when it differs.
$(SCRIPT): FORCE
	@mkdir -p build
	@find sql -type f -name '*.sql' | LC_ALL=C sort | while IFS= read -r file; do cat "$$file"; done >$@.new
	@test -s $@.new || { echo "make: no SQL below sql/" >&2; exit 1; }
	@if cmp -s $@.new $@; then rm $@.new; else mv $@.new $@ && echo "built $@"; fi
FORCE:

install: $(SCRIPT) ## copy the extension's files to where PG_CONFIG says; then CREATE EXTENSION concord
	@sh tools/extension.sh install "$(PG_CONFIG)" "$(DESTDIR)" "$(SCRIPT)"

uninstall: ## remove those files again
	@sh tools/extension.sh uninstall "$(PG_CONFIG)" "$(DESTDIR)" "$(SCRIPT)"

check: $(SCRIPT) ## the psql checks, against DATABASE_URL or an embedded server
	@if [ -n "$$DATABASE_URL" ]; then \
	  sh tests/psql/run "$$DATABASE_URL" $(ARGS); \
	else \
	  sh tools/venv.sh "$(VENV)" embedded && $(PY) -m pyconcord.embedded -- sh tests/psql/run - $(ARGS); \
	fi

bench: ## the measurements of docs/performance.md
	@sh tools/venv.sh "$(VENV)" bench
	$(PY) -m bench $(ARGS)

lint: ## ruff
	@sh tools/venv.sh "$(VENV)" dev
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

types: ## mypy --strict
	@sh tools/venv.sh "$(VENV)" dev
	$(PY) -m mypy

docs: ## docs/reference.md and docs/errors.md, from the comments and the error table in the database
	@sh tools/venv.sh "$(VENV)" embedded
	$(PY) tools/docs.py $(ARGS)

venv: ## the virtual environment with everything for development
	@sh tools/venv.sh "$(VENV)" dev

clean: ## remove what was built, the virtual environment too
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis "$(VENV)"
	find pyconcord tests tools bench -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
