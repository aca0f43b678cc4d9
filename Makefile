# Entry point. `make demo` and `make test` set up `.venv` from the lock file automatically.
SHELL := bash
CORES ?= all

.PHONY: help demo test bench gpu-check docs lint lock clean
help:
	@echo 'make demo   run the study of config/studies/demo.yaml on this machine (CORES=2 limits it), show its table and report'
	@echo 'make test   run the tests, four files at a time (ALL=1 adds the long ones, TESTS=folder selects some)'
	@echo 'make bench  measure the trainers side by side (ARCHIVES=folder adds the real Task04; half an hour without a GPU)'
	@echo 'make gpu-check  test every GPU code path in about an hour (ARCHIVES=folder adds Task04; DEVICE=cpu runs it without a GPU)'
	@echo 'make docs   build the documentation as a site (site/index.html)'
	@echo 'make lint   check formatting, linting and types only'
	@echo 'make lock   resolve requirements*.in into the lock files (UPGRADE=--upgrade allows newer versions)'
	@echo 'make clean  remove the output of the demo and the tools; keep downloads and other studies'

# --- The environment -------------------------------------------------------------------------------------------------

# Nothing of the user's own Python may leak in; everything runs from .venv.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV
export PYTHONNOUSERSITE := 1
# Snakemake does not quote the path to Python. Fail before gigabytes are installed.
ifneq ($(words $(CURDIR)),1)
$(error The path of this folder contains a space: '$(CURDIR)'. Snakemake cannot start Python from there; move the folder)
endif
# Snakemake writes a cache to the home folder before it reads the Snakefile.
ifneq ($(shell test -d "$$HOME" -a -w "$$HOME" && echo yes),yes)
export XDG_CACHE_HOME ?= $(CURDIR)/.snakemake/cache
endif
PY := .venv/bin/python
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH" $(PY) -m

# A Python is suitable if it runs (a pyenv shim may not), can make environments, and has a version
# that the lock file covers.
SUITS := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))

.venv/lock-installed: requirements.lock
	@set -euo pipefail; \
	if ! $(PY) -c '$(SUITS)' 2>/dev/null; then \
	  python=''; \
	  for name in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    if "$$name" -c '$(SUITS)' >/dev/null 2>&1; then python="$$name"; break; fi; \
	  done; \
	  if [ -z "$$python" ]; then $(MAKE) --no-print-directory .venv-bootstrap/python3.11; python=.venv-bootstrap/python3.11; fi; \
	  echo "Setting up .venv with $$("$$python" --version) from requirements.lock (some minutes, several GB on Linux) ..."; \
	  rm -rf .venv; "$$python" -m venv .venv; \
	fi
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -r requirements.lock
	@touch $@

.venv/lock-dev-installed: .venv/lock-installed requirements-dev.lock
	$(PY) -m pip install --disable-pip-version-check --progress-bar off -r requirements-dev.lock
	@touch $@

# Only if no Python from 3.11 to 3.13 is installed: any older Python with pip installs uv, and uv
# installs a Python.
.venv-bootstrap/python3.11:
	@echo 'No Python 3.11, 3.12 or 3.13 (with venv) is installed; trying to install one with uv ...'
	@set -uo pipefail; export UV_PYTHON_INSTALL_DIR="$(CURDIR)/.venv-bootstrap/pythons" UV_CACHE_DIR="$(CURDIR)/.venv-bootstrap/cache"; \
	python3 -m venv .venv-bootstrap \
	&& .venv-bootstrap/bin/python -m pip install --quiet --disable-pip-version-check uv \
	&& .venv-bootstrap/bin/uv python install --no-bin --no-config 3.11 \
	&& ln -sf "$$(.venv-bootstrap/bin/uv python find --no-config --no-project --managed-python 3.11)" $@ \
	|| { rm -rf .venv-bootstrap; \
	  echo 'Error: this workflow needs Python 3.11, 3.12 or 3.13 with the venv module, and none could be found or downloaded.' >&2; \
	  echo 'Install one (Debian: apt install python3 python3-venv; or python.org, conda, pyenv), then: make PYTHON=/path/to/python3.11' >&2; \
	  exit 1; }

# --- Main targets ----------------------------------------------------------------------------------------------------

DEMO := results/demo

demo: .venv/lock-installed
	$(RUN) snakemake --cores $(CORES)
	@if [ ! -e $(DEMO)/report.zip ] || [ -n "$$(find $(DEMO)/tables $(DEMO)/figures $(DEMO)/notebooks -type f -newer $(DEMO)/report.zip)" ]; then \
	  $(RUN) snakemake --report $(DEMO)/report.zip || { rm -f $(DEMO)/report.zip; exit 1; }; \
	fi
	@echo; cat $(DEMO)/tables/verdicts.md; echo; cat $(DEMO)/tables/comparison.md; echo
	@echo 'Open $(DEMO)/notebooks/results.html: it begins with the answer.'
	@echo 'Everything in one file: $(DEMO)/report.zip (unpack it and open report.html)'

# The tests of a file stay together, because they share fixtures. If Slurm is installed but does not
# answer, each start of Snakemake would take nine seconds longer: its plugin asks for the cluster's
# settings.
test: export SLURM_CONF := /dev/null
# Several files run at a time, so torch gets one thread in each.
test: export OMP_NUM_THREADS := 1
test: .venv/lock-dev-installed
	$(RUN) pytest -n 4 --dist loadfile --no-loadscope-reorder $(if $(ALL),,-m 'not ci') $(TESTS)

BENCH := results/bench/bench.md results/bench/loading.md
# Snakemake only uses the last `--config`, so all changes go into one.
ifdef ARCHIVES
TASK04 := archives='$(ARCHIVES)' 'tasks=[Task99_BrainTissue, Task04_Hippocampus]' \
  'checksums={Task04_Hippocampus: 30c0bc764dda9712c928f83b2df23c20}'
endif
ifdef PEER
ifndef PEER_TRAINER
$(error PEER=$(PEER) is the folder of a trainer; name its class with PEER_TRAINER=nnUNetTrainer...)
endif
export nnUNet_extTrainer := $(abspath $(PEER))
WITH_PEER := 'bench={peer: $(PEER_TRAINER)}'
endif
BENCH_CONFIG := $(strip $(TASK04) $(WITH_PEER))

bench: .venv/lock-installed
	$(RUN) snakemake --cores $(CORES) --configfile config/tools/bench.yaml $(if $(BENCH_CONFIG),--config $(BENCH_CONFIG)) \
	  --forcerun bench_trainers bench_loading -- $(BENCH)
	@cat $(BENCH)

CHECK := results/gpu_check/gpu_check.md
CHECK_CONFIG := $(strip $(TASK04) $(if $(DEVICE),'training={device: $(DEVICE)}'))

gpu-check: .venv/lock-installed
	$(RUN) snakemake --cores $(CORES) --configfile config/tools/gpu_check.yaml $(if $(CHECK_CONFIG),--config $(CHECK_CONFIG)) \
	  --forcerun gpu_check -- $(CHECK)
	@cat $(CHECK)
	@! grep -q '| failed ' $(CHECK)

# mkdocs-material announces its successor in every build; this is not a warning about the pages.
docs: export NO_MKDOCS_2_WARNING := 1
# Not with --quiet, which hides warnings from the strict mode too: it would never fail.
docs: .venv/lock-dev-installed
	$(RUN) mkdocs build --strict
	@echo 'Open site/index.html'

lint: .venv/lock-dev-installed
	$(RUN) pytest tests/workflow/test_format_and_lint.py

# uv only resolves, for all machines of [tool.uv] in pyproject.toml at once. Markers that are true
# for all of them are dropped.
MACHINES := ((platform_machine == 'arm64' and sys_platform == 'darwin') or (platform_machine == 'aarch64' and sys_platform == 'linux') or (platform_machine == 'x86_64' and sys_platform == 'linux'))
LINUX := ((platform_machine == 'aarch64' and sys_platform == 'linux') or (platform_machine == 'x86_64' and sys_platform == 'linux'))
UV_COMPILE = .venv-lock/bin/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-emit-index-url --no-header $(UPGRADE)
SHORTEN = sed -e "s/ and platform_python_implementation != 'PyPy'//g" -e "s/ and implementation_name == 'cpython'//" \
  -e "s/python_full_version < '3.14' and //" -e "s/ and $(MACHINES)//" -e "s/ ; $(MACHINES)//" -e "s/$(LINUX)/sys_platform == 'linux'/"

lock: .venv-lock/bin/uv
	$(UV_COMPILE) requirements.in --output-file requirements.lock >/dev/null
	$(UV_COMPILE) requirements-dev.in --constraints requirements.lock --output-file requirements-dev.lock >/dev/null
	@for kind in requirements requirements-dev; do \
	  { echo "# Exact versions of everything, for Python 3.11-3.13 on Linux and macOS (arm64). Made by 'make lock' from $$kind.in."; \
	    $(SHORTEN) $$kind.lock; } > $$kind.new && mv $$kind.new $$kind.lock; \
	done

.venv-lock/bin/uv: .venv/lock-installed
	$(PY) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --disable-pip-version-check uv

clean:
	rm -rf results/demo site build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis .venv-lock
	rm -rf resources/archives/Task99_BrainTissue.tar resources/msd/Task99_BrainTissue
	rm -rf resources/nnUNet_raw/Dataset099_BrainTissue resources/nnUNet_preprocessed/Dataset099_BrainTissue
