package server

import (
	"context"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Metrics are what Prometheus reads: counters kept here, and snapshots of the engine and the pool taken when asked. It is the engine's
// infer.Observer, so it is made before the engine and given to the server with the rest of Deps.
type Metrics struct {
	registry *prometheus.Registry
	deps     Deps // set by New
	probe    *probe

	http       *prometheus.CounterVec
	httpTime   *prometheus.HistogramVec
	queue      prometheus.Histogram
	ttft, tpot prometheus.Histogram
	total      prometheus.Histogram
	step       prometheus.Histogram
	slice      prometheus.Histogram
	wait       prometheus.Histogram
	stepHost   prometheus.Histogram
	batch      prometheus.Histogram
	distinct   prometheus.Histogram

	loraMu sync.Mutex
	lora   string // label values of the last lora_requests_info, to keep its time stamp meaningful
	loraAt float64
}

// NewMetrics makes a set of metrics.
func NewMetrics() *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry()}
	histogram := func(name, help string, buckets []float64) prometheus.Histogram {
		h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: buckets})
		m.registry.MustRegister(h)
		return h
	}
	seconds := prometheus.ExponentialBuckets(0.001, 2, 17) // 1 ms … 65 s
	short := prometheus.ExponentialBuckets(0.0002, 2, 15)  // 0.2 ms … 3.3 s
	counts := prometheus.ExponentialBuckets(1, 2, 10)
	m.http = prometheus.NewCounterVec(prometheus.CounterOpts{Name: "bhive_http_requests_total", Help: "HTTP requests."}, []string{"method", "route", "status"})
	m.httpTime = prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "bhive_http_request_seconds", Help: "Time of an HTTP request, its stream included.", Buckets: seconds}, []string{"route"})
	m.queue = histogram("bhive_request_queue_seconds", "From a request's arrival to its first step.", seconds)
	m.ttft = histogram("bhive_time_to_first_token_seconds", "From a request's arrival to its first token.", seconds)
	m.tpot = histogram("bhive_time_per_output_token_seconds", "Mean time of a request's tokens after the first.", short)
	m.total = histogram("bhive_request_seconds", "From a request's arrival to its end.", seconds)
	m.step = histogram("bhive_step_seconds", "Time of an engine step.", short)
	m.slice = histogram("bhive_training_slice_seconds", "Time of the training between two engine steps, or of a slice of it where there are none.", short)
	m.wait = histogram("bhive_training_wait_seconds", "Time for which a step with a prompt waited on the device for training that was enqueued before it.", short)
	m.stepHost = histogram("bhive_step_host_seconds", "Of a step, scheduling, metadata and publishing.", prometheus.ExponentialBuckets(1e-5, 2, 14))
	m.batch = histogram("bhive_step_sequences", "Sequences in a step.", counts)
	m.distinct = histogram("bhive_step_adapters", "Distinct adapters in a step.", counts)
	m.registry.MustRegister(m.http, m.httpTime, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// bind adds what the server's parts say of themselves.
func (m *Metrics) bind(d Deps, p *probe) {
	m.deps, m.probe = d, p
	m.registry.MustRegister((*snapshot)(m))
}

func (m *Metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

func (m *Metrics) observeHTTP(method, route string, status int, took time.Duration) {
	m.http.WithLabelValues(method, route, strconv.Itoa(status)).Inc()
	m.httpTime.WithLabelValues(route).Observe(took.Seconds())
}

// ObserveStep is infer.Observer's.
func (m *Metrics) ObserveStep(i infer.StepInfo) {
	m.step.Observe(i.Duration.Seconds())
	m.stepHost.Observe(i.Host.Seconds())
	m.batch.Observe(float64(i.Seqs))
	m.distinct.Observe(float64(i.Adapters))
	if i.PrefillTokens > 0 {
		m.wait.Observe(i.Waited.Seconds())
	}
}

// ObserveSlice is infer.Observer's.
func (m *Metrics) ObserveSlice(took time.Duration) { m.slice.Observe(took.Seconds()) }

// ObserveFinish is infer.Observer's.
func (m *Metrics) ObserveFinish(i infer.RequestInfo) {
	m.queue.Observe(i.Queue.Seconds())
	m.total.Observe(i.Total.Seconds())
	if i.FirstToken > 0 {
		m.ttft.Observe(i.FirstToken.Seconds())
	}
	if i.PerToken > 0 {
		m.tpot.Observe(i.PerToken.Seconds())
	}
}

// modelNames turns keys of adapters into the names by which requests ask for them, as a gateway compares them: the versions left out, and
// the default tenant. Mixes are no names: they are left out.
func modelNames(keys []string) []string {
	names := []string{}
	for _, key := range keys {
		name, _, _ := strings.Cut(strings.TrimPrefix(key, adapters.DefaultTenant+"/"), "@")
		if !strings.ContainsAny(key, "+:") && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// training tells of the jobs that have not ended. While the store is away it tells nothing.
func (s *snapshot) training(gauge func(*prometheus.Desc, float64, ...string)) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	jobs, err := s.deps.Store.ListJobs(ctx, adapters.AllTenants, unfinished...)
	if err != nil {
		return
	}
	count, speed := map[string]int{}, 0.0
	for _, j := range jobs {
		count[j.State]++
		if j.State == string(finetune.Running) {
			if now, err := s.deps.Jobs.Get(ctx, j.Tenant, j.ID); err == nil {
				speed += now.Progress.TokensPerSec
			}
		}
	}
	for _, name := range unfinished {
		gauge(descJobs, float64(count[name]), name)
	}
	gauge(descTraining, speed)
}

// snapshot collects what the engine and the pool say of themselves.
type snapshot Metrics

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(name, help, labels, nil)
}

// The names that a gateway of the Kubernetes Gateway API Inference Extension reads are vLLM's.
var (
	descWaiting     = desc("vllm:num_requests_waiting", "Sequences that wait.")
	descRunning     = desc("vllm:num_requests_running", "Sequences that run.")
	descKV          = desc("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.")
	descLoRA        = desc("vllm:lora_requests_info", "Adapters resident on the device (running) and on their way to it (waiting); the value is when that last changed.", "max_lora", "running_lora_adapters", "waiting_lora_adapters")
	descTokens      = desc("bhive_tokens_total", "Tokens: prompt (of admitted requests), cached (of those, from the prefix cache), generated, computed (run through the model).", "kind")
	descPreemptions = desc("bhive_preemptions_total", "Sequences set back because KV blocks ran out.")
	descFinished    = desc("bhive_requests_finished_total", "Choices that ended, by reason.", "reason")
	descSteps       = desc("bhive_steps_total", "Engine steps.")
	descTime        = desc("bhive_device_seconds_total", "Time in which the device ran steps (serving) and training, as the host sees it.", "work")
	descIdle        = desc("bhive_training_idle_seconds_total", "Time in which there was training to do and no step ran; bhive_device_seconds_total{work=\"training\"} is what training got of it.")
	descTarget      = desc("bhive_tpot_target_seconds", "Time from token to token under which training keeps 99 of 100 tokens; 0: not known yet.")
	descKVBlocks    = desc("bhive_kv_blocks", "KV blocks: total, used by sequences, cached prefixes.", "state")
	descTier        = desc("bhive_adapter_tier_bytes", "Bytes of B's by tier.", "tier")
	descAdapters    = desc("bhive_adapters_resident", "Adapters (and mixes) on the device.")
	descLeased      = desc("bhive_adapter_leases", "Leases on adapters.")
	descLookups     = desc("bhive_adapter_lookups_total", "Adapters asked for, by the tier that had them.", "tier")
	descEvictions   = desc("bhive_adapter_evictions_total", "Adapters evicted from the device.")
	descJobs        = desc("bhive_training_jobs", "Training jobs that have not ended, by state.", "state")
	descTraining    = desc("bhive_training_tokens_per_second", "Tokens that running jobs train on, a second.")
	descUp          = desc("bhive_registry_up", "1 while the registry answers, else 0.")
	descFailures    = desc("bhive_adapter_load_failures_total", "Adapters that could not be loaded.")
)

// Describe sends nothing: the set of metrics varies with the reasons seen.
func (s *snapshot) Describe(chan<- *prometheus.Desc) {}

// Collect is prometheus.Collector's.
func (s *snapshot) Collect(out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v, labels...)
	}
	e, p := s.deps.Engine.Stats(), s.deps.Pool.Stats()
	gauge(descWaiting, float64(e.Waiting))
	gauge(descRunning, float64(e.Running))
	gauge(descKV, float64(e.KVUsed)/float64(max(e.KVBlocks, 1)))
	gauge(descKVBlocks, float64(e.KVBlocks), "total")
	gauge(descKVBlocks, float64(e.KVUsed), "used")
	gauge(descKVBlocks, float64(e.KVCached), "cached")
	counter(descTokens, float64(e.PromptTokens), "prompt")
	counter(descTokens, float64(e.CachedTokens), "cached")
	counter(descTokens, float64(e.GeneratedTokens), "generated")
	counter(descTokens, float64(e.ComputedTokens), "computed")
	counter(descPreemptions, float64(e.Preemptions))
	counter(descSteps, float64(e.Steps))
	counter(descTime, e.StepTime.Seconds(), "serving")
	counter(descTime, e.BackgroundTime.Seconds(), "training")
	counter(descIdle, e.IdleTime.Seconds())
	gauge(descTarget, e.TPOTTarget.Seconds())
	for reason, n := range e.Requests {
		counter(descFinished, float64(n), string(reason))
	}
	gauge(descTier, float64(p.DeviceBytes), "device")
	gauge(descTier, float64(p.HostBytes), "host")
	gauge(descAdapters, float64(len(p.Resident)))
	gauge(descLeased, float64(p.Leased))
	counter(descLookups, float64(p.Hits), "device")
	counter(descLookups, float64(p.HostHits), "host")
	counter(descLookups, float64(p.Misses), "store")
	counter(descEvictions, float64(p.Evictions))
	counter(descFailures, float64(p.Failures))

	up := 0.0
	if s.probe.check(context.Background()) == nil {
		up = 1
		s.training(gauge)
	}
	gauge(descUp, up)

	running, waiting := strings.Join(modelNames(p.Resident), ","), strings.Join(modelNames(p.Waiting), ",")
	s.loraMu.Lock()
	if state := running + "|" + waiting; state != s.lora || s.loraAt == 0 {
		s.lora, s.loraAt = state, float64(time.Now().UnixMilli())/1000
	}
	at := s.loraAt
	s.loraMu.Unlock()
	gauge(descLoRA, at, strconv.Itoa(s.deps.Slots), running, waiting)
}
