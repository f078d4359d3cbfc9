# `make run` builds and starts Rejoin, `make test` is the gate; `make help` names the rest.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules --no-print-directory

CARGO ?= cargo
NPM ?= npm
TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON ?= python3
PYTHON_TOOLS := $(TARGET)/python
CARGO_DENY ?= $(or $(shell command -v cargo-deny),$(TARGET)/tools/bin/cargo-deny)

# The browser that the tests of the page drive.
export CHROMIUM_BIN ?= /usr/bin/chromium

.PHONY: help
help: ## What can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | while IFS='|' read -r name what; do \
		printf '  make %-14s %s\n' "$$name" "$$what"; done

# Use

.PHONY: run
run: $(TARGET)/release/rejoin ## Build what is out of date, start the server, print a sign-in link
	@exec $(TARGET)/release/rejoin serve --config config.toml

.PHONY: dist
dist: page ## Build the smallest and fastest program; takes minutes longer
	$(CARGO) build --locked --profile dist
	@ls -l $(TARGET)/dist/rejoin

.PHONY: bench
bench: $(TARGET)/release/rejoin ## Measure; BENCH="--only S3 --quiet 60" for a part of it, BENCH=--help for more
	$(CARGO) build --locked --release -p rejoin-bench
	$(TARGET)/release/rejoin-bench --server $(TARGET)/release/rejoin --under $(TARGET) $(BENCH)

.PHONY: page
page: web/dist/index.html ## Build the page, if something of it changed

.PHONY: clean
clean: ## Remove everything that was built; data/ stays
	rm -rf $(TARGET) web/dist web/node_modules

# Cargo knows best what is out of date, so it is always asked.
.PHONY: $(TARGET)/release/rejoin
$(TARGET)/release/rejoin: page
	$(CARGO) build --locked --release

PAGE_SOURCES := $(shell find web -type f -not -path '*/node_modules/*' -not -path '*/dist/*' -not -path '*/tests/*' 2>/dev/null)

web/dist/index.html: web/node_modules/.package-lock.json $(PAGE_SOURCES)
	$(NPM) run --prefix web build
	@touch $@

# npm writes this file last of all.
web/node_modules/.package-lock.json: web/package.json web/package-lock.json web/sdk/package.json
	$(NPM) ci --prefix web --no-audit --no-fund
	@touch $@

# What is too long for the gate. A part that is there for the commit is not played again, one that was interrupted is
# gone on with or begun anew.

.PHONY: soak
soak: page ## Hours of kills, dead lines, crowds and silence; PART="idle memory" for some, SIDE_BY_SIDE=1, SOAK_MINUTES
	@CARGO="$(CARGO)" tests/soak/soak.sh $(PART)

# The gate. From what fails soonest to what takes longest; each part can be made by itself.

.PHONY: test
test: ## The whole gate: every part below
	@all=$$SECONDS; for part in tools format page-checks lint rust-tests conformance docs models python-tests browser-tests dependencies; do \
		printf '\n==> %s\n' "$$part"; started=$$SECONDS; \
		$(MAKE) "$$part"; \
		printf '==> %s: ok, %d s\n' "$$part" "$$((SECONDS - started))"; \
	done; \
	printf '\nAll of it passed in %d s.\n' "$$((SECONDS - all))"

.PHONY: tools
tools: ## What the tests need: the packages of the page; Chromium and Python's venv where there are none
	@$(MAKE) web/node_modules/.package-lock.json
	@packages=; \
	if [ ! -x "$$CHROMIUM_BIN" ]; then packages=chromium; fi; \
	if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then packages="$$packages python3-venv"; fi; \
	if [ -z "$$packages" ]; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=; \
	elif sudo -n true 2>/dev/null; then as_root='sudo -n'; \
	else echo "The tests need $$packages: install that (another Chromium can be named with CHROMIUM_BIN)." >&2; exit 1; fi; \
	$$as_root apt-get update; \
	$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $$packages

.PHONY: format
format: ## Rust is formatted
	$(CARGO) fmt --all --check

.PHONY: page-checks
page-checks: web/node_modules/.package-lock.json ## Types, lints, format and tests of the page and its client
	$(NPM) run --prefix web check
	$(NPM) test --prefix web

.PHONY: lint
lint: page ## clippy, with and without the features for tests
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --features failpoints -- -D warnings
	$(CARGO) clippy --locked --lib --test loom --features loom -- -D warnings

# One build with the failpoints serves all: unless a test arms one, they do nothing.
.PHONY: rust-tests
rust-tests: page ## All tests in Rust but the models
	$(CARGO) test --locked --features failpoints

# The cases for this server are among rust-tests, those for the page's client among page-checks.
.PHONY: conformance
conformance: page ## The conformance kit: the command line's client, and the server once more from outside
	$(CARGO) build --locked --features failpoints
	REJOIN_BIN="$(abspath $(TARGET))/debug/rejoin" node --test --test-reporter=dot tests/conformance/client.test.mjs
	REJOIN_BIN="$(abspath $(TARGET))/debug/rejoin" SERVER='node tests/conformance/control.mjs' \
		$(CARGO) test --locked --features failpoints --test it conformance::the_server

.PHONY: faults
faults: page ## Plants fifteen faults in turn; the kit has to find each. Not in the gate: minutes
	node tests/conformance/plant.mjs

.PHONY: models
models: ## Every interleaving of the orders that must hold
	$(CARGO) test --locked --features loom --test loom

.PHONY: docs
docs: ## The reference builds without a warning
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --no-deps

.PHONY: dependencies
dependencies: $(CARGO_DENY) ## Licences, banned crates, sources
	$(CARGO_DENY) --locked check bans licenses sources

# Unoptimised: its build costs far more than its few seconds of work.
$(TARGET)/tools/bin/cargo-deny:
	CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_LTO=off \
		$(CARGO) install cargo-deny --version 0.20.2 --locked --root $(TARGET)/tools

.PHONY: python-tests
python-tests: page $(PYTHON_TOOLS)/installed ## The table of time zones by another hand; the Python client: format, lints, types, and tests against a real server
	$(PYTHON) tests/zones/check.py
	$(CARGO) build --locked --features failpoints
	cd clients/python && export PATH="$(abspath $(PYTHON_TOOLS))/bin:$$PATH" \
		PYTHONPYCACHEPREFIX="$(abspath $(PYTHON_TOOLS))/pycache" MYPY_CACHE_DIR="$(abspath $(PYTHON_TOOLS))/mypy" \
		RUFF_CACHE_DIR="$(abspath $(PYTHON_TOOLS))/ruff" REJOIN_BIN="$(abspath $(TARGET))/debug/rejoin"; \
		ruff format --check . && ruff check . && mypy && pytest -p no:cacheprovider

# What the Python tests need, as locked; nothing of it is installed elsewhere.
$(PYTHON_TOOLS)/installed: clients/python/requirements-dev.txt
	$(PYTHON) -m venv --clear $(PYTHON_TOOLS)
	$(PYTHON_TOOLS)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

.PHONY: browser-tests
browser-tests: page ## The page in a real browser against a real server
	$(CARGO) build --locked --features failpoints
	REJOIN_BIN="$(abspath $(TARGET))/debug/rejoin" $(NPM) run --prefix web test:browser
