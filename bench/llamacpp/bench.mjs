// Speed of llama.cpp's shared library, as node-llama-cpp loads it: decode at batch 1 and prefill, medians.
//
// usage: node bench.mjs MODEL.gguf THREADS [CONTEXT] [STEPS] [PREFILL]
//
// Each decode step is timed as its token arrives, so it holds the binding's own overhead (a fraction of a per cent of a 10 ms step).
import {getLlama, LlamaLogLevel} from "node-llama-cpp";

const [path, threads, context = 128, steps = 64, prefill = 256] = process.argv.slice(2).map((v, i) => i ? Number(v) : v);
const median = (xs) => xs.sort((a, b) => a - b)[xs.length >> 1];

const llama = await getLlama({build: "never", gpu: false, maxThreads: threads, logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: path});
const ctx = await model.createContext({contextSize: 1024, batchSize: 512, threads, sequences: 1, flashAttention: true});
const seq = ctx.getSequence();
const tokens = Array.from({length: prefill}, (_, i) => 100 + (i * 7919) % 40000);

const prefills = [];
for (let i = 0; i < 6; i++) {
    await seq.clearHistory();
    const start = performance.now();
    await seq.evaluateWithoutGeneratingNewTokens(tokens);
    if (i > 0) prefills.push(performance.now() - start);
}
await seq.clearHistory();
await seq.evaluateWithoutGeneratingNewTokens(tokens.slice(0, context - steps / 2));
const times = [];
let last = performance.now();
for await (const _ of seq.evaluate([tokens[0]], {temperature: 0, yieldEogToken: true})) {
    const now = performance.now();
    times.push(now - last);
    last = now;
    if (times.length > steps) break;
}
const step = median(times.slice(1)), whole = median(prefills);
console.log(JSON.stringify({model: path.split("/").pop(), threads, decode_ms: +step.toFixed(3), decode_tok_s: +(1e3 / step).toFixed(1),
    prefill_ms: +whole.toFixed(1), prefill_tok_s: +(1e3 * prefill / whole).toFixed(0)}));
process.exit(0);
