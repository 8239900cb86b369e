# From a fresh clone: `make demo` shows it working, `make test` proves it. Each makes .venv itself.
#
#   make demo         the small trained model: export it, narrate unseen videos, stream a real one
#   make test         all tests but the slow ones and those that need a GPU, on WORKERS=2 cores
#   make test-all     the slow ones too
#   make test-portable
#                     those that depend on float kernels, with the kernels of an older processor
#   make check        lint, format, types
#   make torch-free   a bundle runs, and is compiled, where neither torch nor onnx is installed
#   make docs         the documentation site, in build/site; any warning is an error
#   make figures      the bundled model's tables and pictures, measured again (30 minutes)
#   make release      wheel and source archive in dist/, each tried in a fresh environment
#   make results      the paper's comparisons: the runs that are missing (hours), docs/results.md

PYTHON ?= python3
VENV ?= .venv
DEMO := build/demo
CLIP := tests/data/box.mp4
RESULTS := build/results
LEAST_F1 := 0.6
WORKERS ?= 2
INSTALLED := $(VENV)/.installed

BIN := $(VENV)/bin
MOD_EDGE := $(BIN)/mod-edge

# A file's tests share a worker, because its fixtures are made once a worker. Files go out in the
# order of their folders: by default those of few tests come last, and some of them take a minute.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# With these, torch, oneDNN and MKL take kernels without AVX-512, torch even without AVX2.
OLDER_KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	OMP_NUM_THREADS=1

.PHONY: demo bundle test test-all test-portable check torch-free docs figures release results
.DELETE_ON_ERROR:

# One pip call, so that the constraints choose torch and no other package pulls a larger build.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

demo: bundle
	@echo "== scenes: draw three videos that the model has never seen"
	$(MOD_EDGE) scenes $(DEMO)/scenes --train 0 --validation 0 --test 3 --combinations 0 --seed 7 \
		--photographs $(CLIP) --force
	@echo "== eval: narrate them, beside the right sentences (fails below an F1 of $(LEAST_F1))"
	$(MOD_EDGE) eval $(DEMO)/bundle --data $(DEMO)/scenes --verbose --least-f1 $(LEAST_F1)
	@echo "== run: watch a real video live; the model knows synthetic scenes only, so its words mean little"
	$(MOD_EDGE) run $(DEMO)/bundle --source $(CLIP) --window 20s \
		--query "Please narrate the video in real time." --query "What is here?@7"

bundle: $(INSTALLED)
	@echo "== init: write the bundled model"
	$(MOD_EDGE) init narrator $(DEMO)/checkpoint --force
	@echo "== export: write ONNX graphs and compare each with PyTorch"
	$(MOD_EDGE) export $(DEMO)/checkpoint -o $(DEMO)/bundle --force

test: $(INSTALLED)
	$(PYTEST) -m "not gpu and not slow and not qemu"

# One after the other: some of the slow ones take 6 GiB of memory.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu"

# ONNX Runtime, numpy and OpenCV have no such variables: for them qemu emulates the processor.
test-portable: $(INSTALLED)
	@command -v qemu-x86_64 >/dev/null || { echo "error: test-portable needs qemu-x86_64, \
	version 7.2 or newer; on Debian: apt-get install qemu-user" >&2; exit 1; }
	@$(OLDER_KERNELS) $(BIN)/python -c 'from torch.backends import cpu; \
	found = cpu.get_cpu_capability(); found == "DEFAULT" or exit(f"error: torch took {found}")'
	$(OLDER_KERNELS) $(PYTEST) -m "(numeric or qemu) and not gpu and not slow"

# mypy does not read package-dir, so it gets a tree that is installed the way users have it;
# build/lib would bring back modules that were deleted since the last build.
check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build/lib build/typing
	$(BIN)/python -m pip install --quiet --no-deps --target build/typing .
	cd build/typing && $(abspath $(BIN))/mypy --config-file $(CURDIR)/pyproject.toml \
		--cache-dir $(CURDIR)/.mypy_cache -p mod_edge

torch-free: bundle
	BUILDER=$(BIN)/python tests/run_without_torch.sh $(DEMO)/bundle
	$(MOD_EDGE) export $(DEMO)/checkpoint -o $(DEMO)/rtx --profile rtx-ada --target rtx \
		--window 260 --force
	BUILDER=$(BIN)/python tests/build_without_torch.sh $(DEMO)/rtx

# The API pages read an installed tree: in the checkout, three folders lie outside mod_edge/.
docs: $(INSTALLED)
	@rm -rf build/lib build/docs-tree
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/docs-tree .
	$(BIN)/python -m zensical build --strict --clean

# What it measured lies in build/figures; delete that folder to measure all of it again.
figures: $(INSTALLED)
	$(BIN)/python -m benchmarks.figures

release: $(INSTALLED)
	$(MOD_EDGE) init tiny build/release/checkpoint --force
	$(MOD_EDGE) export build/release/checkpoint -o build/release/bundle --force
	BUILDER=$(BIN)/python tests/try_release.sh build/release/bundle

# Ctrl-C stops it at any time, the same command goes on.
results: $(INSTALLED) $(RESULTS)/scenes
	$(BIN)/python -m benchmarks.paper_tables --data $(RESULTS)/scenes --base docs/results/base \
		--runs docs/results --write docs/results.md

$(RESULTS)/scenes: | $(INSTALLED)
	$(MOD_EDGE) scenes $@ --train 3000 --validation 60 --test 120 --combinations 0 --duration 15 \
		--photographs $(CLIP)
