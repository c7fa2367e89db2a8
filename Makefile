# make demo: trains, scores and serves on this machine. make test: runs every test. Both create .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip's own settings (a mirror, a proxy's certificate) hold for uv, too.
export UV_DEFAULT_INDEX ?= $(shell $(PYTHON) -m pip config get global.index-url 2>/dev/null)
ifeq ($(strip $(UV_DEFAULT_INDEX)),)
unexport UV_DEFAULT_INDEX
endif

.PHONY: demo test images lint lock install clean

demo: install $(if $(DOCKER),images)
	$(BIN)/python -m launcher demo $(if $(DOCKER),--docker)

# SLIPWAY_BASE_IMAGE and SLIPWAY_BUILD_NETWORK are for machines that cannot pull the Dockerfiles' base image.
IMAGE_SETTINGS := --set images.training.uri=slipway-train:local --set images.serving.uri=slipway-serve:local
ifneq ($(SLIPWAY_BASE_IMAGE),)
IMAGE_SETTINGS += --set images.training.base_image=$(SLIPWAY_BASE_IMAGE) --set images.serving.base_image=$(SLIPWAY_BASE_IMAGE)
endif
ifneq ($(SLIPWAY_BUILD_NETWORK),)
IMAGE_SETTINGS += --set images.network=$(SLIPWAY_BUILD_NETWORK)
endif
images: install
	$(BIN)/python -m launcher build $(IMAGE_SETTINGS)

# Side by side; tests/conftest.py says how many at a time, PYTEST_ARGS="-n 0" one after the other.
test: install
	$(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

install: $(VENV)/.installed

# Bytecode is compiled here: our containers write none at run time, and torch without it imports ten times slower.
$(VENV)/.installed: requirements/dev.txt requirements/uv.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed, and $(PYTHON) is older: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "python3 lacks venv: apt-get install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@echo "installing what requirements/dev.txt pins into $(VENV): 6 GB, a few minutes the first time"
	@[ -t 1 ] || quiet=--quiet; export VIRTUAL_ENV=$(CURDIR)/$(VENV); \
	    $(BIN)/uv pip install $$quiet --compile-bytecode --require-hashes -r requirements/dev.txt
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# One resolution for everything, so that what is tested together is what the images and the laptop run.
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --no-emit-find-links --no-annotate
lock:
	$(COMPILE) --extra train --extra serve --extra launcher --extra dev pyproject.toml requirements/torch.in -o requirements/dev.txt
	$(COMPILE) requirements/torch.in -c requirements/dev.txt -o requirements/torch.txt
	$(COMPILE) --extra train pyproject.toml requirements/torch.in -c requirements/dev.txt -o requirements/train.txt
	$(COMPILE) --extra serve pyproject.toml requirements/torch.in -c requirements/dev.txt -o requirements/serve.txt
	$(COMPILE) --extra launcher pyproject.toml -c requirements/dev.txt -o requirements/launcher.txt
	$(COMPILE) requirements/uv.in -o requirements/uv.txt

clean:
	rm -rf $(VENV) .launcher
