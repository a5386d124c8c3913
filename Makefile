# make demo: see it work. make help: every target.
SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin

C_FILES = $(wildcard libpharaoh/csrc/*.[ch] pharaohd/csrc/*.[ch] pharaohd/csrc/*/*.[ch])
ALL_C_FILES = $(C_FILES) $(wildcard tests/csrc/*.[ch] bench/csrc/*.[ch])
PY_DIRS = $(sort $(dir $(wildcard $(addsuffix /*.py,libpharaoh pharaohd tools bench demo examples tests))))

# command=Debian package, for the tests that mount file systems, enter namespaces, check models and count.
TEST_PACKAGES := spin=spin mkfs.ext4=e2fsprogs unshare=util-linux losetup=mount ip=iproute2 \
	strace=strace valgrind=valgrind

.PHONY: help setup demo run test check lint format ctest bench soak model mutants clean

help:
	@echo 'setup    .venv with the package and the tools (quick when nothing changed)'
	@echo 'demo     a web shop under load while its id daemon is killed; ends by itself'
	@echo 'run      a daemon in the foreground under ./var'
	@echo 'test     everything that CI runs; pytest alone: .venv/bin/pytest'
	@echo 'bench    speed beside its peers; ONLY="ring socket" chooses'
	@echo 'soak     ten minutes at full rate, SECONDS=60 for one; nothing may grow, nothing come twice'
	@echo 'lint, format, ctest, model, mutants, clean'

# One at a time: two at once would write into the same virtual environment.
setup:
	@mkdir -p build
	@flock build/setup.lock $(MAKE) --no-print-directory $(VENV)/.stamp-packages
	@flock build/setup.lock $(MAKE) --no-print-directory $(VENV)/.stamp-modules

$(VENV)/.stamp-venv:
	python=$$(sh tools/bootstrap.sh $(TEST_PACKAGES)) && "$$python" -m venv --clear $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check 'setuptools>=77' 'cffi>=2.1'
	touch $@

# The C modules are built along with it, hence the second touch.
$(VENV)/.stamp-packages: pyproject.toml setup.py | $(VENV)/.stamp-venv
	rm -f libpharaoh/_*.so pharaohd/_*.so
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[dev,demo]'
	touch $@ $(VENV)/.stamp-modules

# A module built by hand has another suffix and would be preferred for ever: out with all of them first.
$(VENV)/.stamp-modules: $(C_FILES) pharaohd/_build.py
	rm -f libpharaoh/_*.so pharaohd/_*.so
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

demo: setup
	$(BIN)/python -m demo

run: setup
	$(BIN)/pharaohd --dir ./var

test: check ctest
	$(BIN)/pytest $(PYTEST_ARGS)

check: setup lint
	$(BIN)/python -m tools.gen --check
	$(BIN)/python -m tools.tidy
	$(BIN)/python -m tools.mutate --check

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/clang-format --dry-run -Werror $(ALL_C_FILES)
	$(BIN)/mypy $(PY_DIRS)

format: setup
	$(BIN)/ruff check --fix-only --quiet
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(ALL_C_FILES)

ctest:
	$(MAKE) -C tests/csrc check

bench: setup
	@$(MAKE) --no-print-directory $(VENV)/.stamp-bench
	$(BIN)/python -m bench $(ONLY)

soak: setup
	@$(MAKE) --no-print-directory $(VENV)/.stamp-bench
	$(BIN)/python -m bench.soak $(SECONDS)

# Redis is fetched by the bench itself: Debian's package would start a service.
$(VENV)/.stamp-bench: $(VENV)/.stamp-packages
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation -e '.[bench]'
	touch $@

model: setup
	$(BIN)/pytest tests/model

mutants: setup
	$(BIN)/python -m tools.mutate $(ONLY)

clean:
	rm -rf $(VENV) build dist var *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f libpharaoh/_*.so $(addprefix pharaohd/_core,.c .o *.so)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
