# make demo and make test do everything on a fresh machine; the others are for those who work on it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test check bench bench-read check-shared fuzz accuracy lab lab-system lab-versions \
    captures judges clean

$(READY): setup.cfg pyproject.toml fixtures/lab/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --editable '.[test,check]' --requirement fixtures/lab/requirements.txt
	touch $@

demo: $(READY)
	@$(BIN)/python -m fixtures.demo

test: $(READY)
	$(BIN)/python -m pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m fixtures.bench

bench-read: $(READY)
	$(BIN)/python -m fixtures.bench_read

check-shared: $(READY)
	$(BIN)/python -m fixtures.shared_captures $(or $(DIR),../shared/captures)

fuzz: $(READY)
	$(BIN)/python -m fixtures.fuzz_read

accuracy: $(READY)
	$(BIN)/python -m fixtures.accuracy

lab: $(READY)
	$(BIN)/python -m fixtures.lab up

lab-system: $(READY)
	$(BIN)/python -m fixtures.lab.system

lab-versions: $(READY)
	$(BIN)/python -m fixtures.lab.versions

# The drivers that are not here afterwards are reported as absent; pgjdbc is unpacked, not installed.
CACHE := $(or $(PGPROBE_LAB_CACHE),.lab)
DRIVERS := $(CACHE)/.drivers
$(DRIVERS): $(READY) fixtures/judges/requirements.txt fixtures/judges/node/package-lock.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    --requirement fixtures/judges/requirements.txt
	mkdir -p $(CACHE)/node $(CACHE)/debian
	echo '*' >$(CACHE)/.gitignore
	cp fixtures/judges/node/package.json fixtures/judges/node/package-lock.json $(CACHE)/node
	-npm ci --prefix $(CACHE)/node --ignore-scripts --no-audit --no-fund --silent
	-cd $(CACHE)/debian && apt-get download -qq libpostgresql-jdbc-java && dpkg --extract *.deb .
	touch $@

captures: $(READY)
	$(BIN)/python -m fixtures.captures

judges: $(DRIVERS)
	$(BIN)/python -m fixtures.judges

clean:
	rm -rf $(VENV) build dist *.egg-info
