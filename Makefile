# make demo   edit images with the bundled model, then say where to find them
# make test   style, types and the whole test suite
#
# PYTHON chooses the interpreter (3.11 to 3.13) and TORCH what pip is given for PyTorch: another build, an index of builds.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
DEMO := runs/quickstart

BIN := $(VENV)/bin
LOG := $(VENV)/install.log
DESCRIPTION := setup.cfg setup.py pyproject.toml constraints.txt

# pip with its exact versions; shows the large downloads, keeps the rest in a log and shows its end if something fails.
define pip
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt $(1) 2>&1 | tee -a $(LOG) | awk ' \
		/^ *(Downloading|Using cached) .*[(][0-9.]+ [MG]B[)]/ { print "  " $$0; fflush() } \
		/^Installing collected packages/ { print "  installing"; fflush() }' \
	|| { tail -n 20 $(LOG); echo "Installation failed; the whole log is $(LOG)."; exit 1; }
endef

.PHONY: demo test
demo: $(VENV)/.installed
	$(BIN)/invedit run experiments/quickstart.yaml --output $(DEMO)
	@images=$$(find $(DEMO) -name 'edit*.png' | sort); test -n "$$images" || { echo "No edited image in $(DEMO)."; exit 1; }; \
	echo; \
	echo "edited images   $(DEMO): $$(wc -l <<<"$$images"), for example"; \
	awk '{ at[NR] = $$0 } END { step = NR > 4 ? NR / 4 : 1; for (n = 1; n <= NR; n += step) print "                " at[int(n)] }' \
		<<<"$$images"; \
	echo "report data"; \
	find $(DEMO) -path '*/records/*' -name '*.jsonl' -o -name '*.parquet' | sort | sed 's/^/                /'
	@$(BIN)/invedit report $(DEMO) >/dev/null
	@echo "dashboard       $(BIN)/invedit dashboard $(DEMO)"; \
	echo "report          $(DEMO)/report.html"

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict framework methods callbacks
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

$(VENV)/.installed: $(DESCRIPTION)
	@echo "Setting up $(VENV): a few minutes the first time, nothing after that."
	$(PYTHON) -m venv $(VENV)
	@echo "  PyTorch"
	$(call pip,setuptools $(TORCH))
	@echo "  invedit and what it uses"
	$(call pip,--no-build-isolation --config-settings editable_mode=compat -e .)
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Adding what the tests need."
	$(call pip,--no-build-isolation --config-settings editable_mode=compat -e .[dev])
	@touch $@
