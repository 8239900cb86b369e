# Every target works in a fresh clone and creates .venv if needed.
#
#   make demo           export the bundled model, narrate unseen videos, stream a real one
#   make test           all tests except slow, GPU and qemu tests, on WORKERS=2 cores
#   make test-all       all tests except GPU tests
#   make test-portable  tests that depend on float kernels, with an older processor's kernels
#   make check          lint, format, types
#   make torch-free     run and build a bundle without torch and onnx installed
#   make test-lowest    run a bundle with the lowest versions that pyproject.toml allows
#   make docs           build the documentation site in build/site; warnings are errors
#   make figures        measure the bundled model's tables and pictures again (30 minutes)
#   make long-run       measure an hour of narration under other policies of the window (40 minutes)
#   make precision      measure what every weight format costs, for docs/precision.md (30 minutes)
#   make soak           stream a day of frames, judge memory and times, for docs/soak.md (40 minutes)
#   make bench          measure llama.cpp, OpenVINO and others beside this runtime (30 minutes at first)
#   make release        build wheel and source archive in dist/, try each in a fresh environment
#   make results        the paper's comparisons: missing runs (hours), then docs/results.md

PYTHON ?= python3
VENV ?= .venv
DEMO := build/demo
CLIP := tests/data/box.mp4
RESULTS := build/results
LEAST_F1 := 0.75
WORKERS ?= 2
INSTALLED := $(VENV)/.installed

BIN := $(VENV)/bin
MOD_EDGE := $(BIN)/mod-edge

# loadfile: the tests of a file share a worker, and so its fixtures. no-loadscope-reorder: by default
# files with few tests start last, and some of them take a minute.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Selects kernels without AVX-512 in torch, oneDNN and MKL; in torch also without AVX2.
OLDER_KERNELS := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \
	OMP_NUM_THREADS=1

.PHONY: demo bundle test test-all test-portable check torch-free test-lowest docs figures long-run precision soak bench release results
.DELETE_ON_ERROR:

# One pip call: the constraints choose the torch build, and no package pulls in a larger one.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

demo: bundle
	@echo "== scenes: generate three videos that the model has never seen"
	$(MOD_EDGE) scenes $(DEMO)/scenes --train 0 --validation 0 --test 3 --combinations 0 --seed 7 \
		--photographs $(CLIP) --force
	@echo "== eval: narrate them next to the expected captions (fails below an F1 of $(LEAST_F1))"
	$(MOD_EDGE) eval $(DEMO)/bundle --data $(DEMO)/scenes --verbose --least-f1 $(LEAST_F1)
	@echo "== run: stream a real video; the model was trained on synthetic scenes, so its captions are off"
	$(MOD_EDGE) run $(DEMO)/bundle --source $(CLIP) --window 20s \
		--query "Please narrate the video in real time." --query "What is here?@7"

bundle: $(INSTALLED)
	@echo "== init: create a checkpoint of the bundled model"
	$(MOD_EDGE) init narrator $(DEMO)/checkpoint --force
	@echo "== export: export ONNX graphs and check each against PyTorch"
	$(MOD_EDGE) export $(DEMO)/checkpoint -o $(DEMO)/bundle --force

test: $(INSTALLED)
	$(PYTEST) -m "not gpu and not slow and not qemu"

# On one core: some slow tests take 6 GiB of memory.
test-all: $(INSTALLED)
	$(BIN)/python -m pytest -m "not gpu"

# ONNX Runtime, numpy and OpenCV have no such variables, so qemu emulates the processor for them.
test-portable: $(INSTALLED)
	@command -v qemu-x86_64 >/dev/null || { echo "error: test-portable needs qemu-x86_64, \
	version 7.2 or newer; on Debian: apt-get install qemu-user" >&2; exit 1; }
	@$(OLDER_KERNELS) $(BIN)/python -c 'from torch.backends import cpu; \
	found = cpu.get_cpu_capability(); found == "DEFAULT" or exit(f"error: torch took {found}")'
	$(OLDER_KERNELS) $(PYTEST) -m "(numeric or qemu) and not gpu and not slow"

# mypy does not read package-dir, so it checks an installed tree; an old build/lib would bring back
# deleted modules.
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

test-lowest: bundle
	UV=$(BIN)/uv tests/run_with_lowest_versions.sh $(DEMO)/bundle

# The API pages need an installed tree: in the checkout, three folders are outside mod_edge/.
docs: $(INSTALLED)
	@rm -rf build/lib build/docs-tree
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target build/docs-tree .
	$(BIN)/python -m zensical build --strict --clean
	@sed -i 's|href="docs/|href="|g' build/site/index.html  # it includes parts of README.md

# Measurements are kept in build/figures; delete that folder to repeat them.
figures: $(INSTALLED)
	$(BIN)/python -m benchmarks.figures

# Measurements are kept in build/long-run, and an interrupted run continues.
long-run: $(INSTALLED)
	$(BIN)/python -m benchmarks.long_run

# Measurements are kept in build/precision. Published weights are measured where these variables name
# their folders: MOD_EDGE_REAL_LLM (SmolLM2-135M-Instruct) and MOD_EDGE_REAL_VIT (a vision tower).
precision: $(INSTALLED)
	$(BIN)/python -m benchmarks.precision

# Samples and events are kept in build/soak.
soak: $(INSTALLED)
	$(BIN)/python -m benchmarks.soak --page docs/soak.md

# Environments, models and measurements are kept in build/peers, or in the folder that MOD_EDGE_PEERS
# names; delete its folder `measurements` to repeat them.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.peers

release: $(INSTALLED)
	$(MOD_EDGE) init tiny build/release/checkpoint --force
	$(MOD_EDGE) export build/release/checkpoint -o build/release/bundle --force
	BUILDER=$(BIN)/python tests/try_release.sh build/release/bundle

# Ctrl-C interrupts it at any time; the same command continues.
results: $(INSTALLED) $(RESULTS)/scenes
	$(BIN)/python -m benchmarks.paper_tables --data $(RESULTS)/scenes --base docs/results/base \
		--runs docs/results --write docs/results.md

$(RESULTS)/scenes: | $(INSTALLED)
	$(MOD_EDGE) scenes $@ --train 3000 --validation 60 --test 120 --combinations 0 --duration 15 \
		--photographs $(CLIP)
