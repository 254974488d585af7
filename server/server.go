package server

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/chat"
	"bhive/infer/grammar"
	"bhive/infer/tokenizer"
	"bhive/infer/toolcall"
	"bhive/server/keys"

	"github.com/go-chi/chi/v5"
)

// Deps are what a server answers with. All of it is open and running; the server closes none of it.
type Deps struct {
	Engine    *infer.Engine
	Jobs      *finetune.Manager
	Registry  *adapters.Registry
	Store     adapters.Store
	Pool      *adapters.Pool
	Slots     int // adapter slots on the device
	Basis     *adapters.Basis
	Tokenizer *tokenizer.Tokenizer
	Template  *chat.Template  // nil where the model has none: chat is then refused
	ToolCalls toolcall.Format // how the model writes calls of tools; "": as its template does
	Model     ModelInfo
	Metrics   *Metrics // nil: its own, which sees no steps
	OpenAPI   []byte   // the contract, as /openapi.yaml gives it
	Log       *slog.Logger
}

// ModelInfo describes the base model.
type ModelInfo struct {
	Name     string // as clients call it
	Created  time.Time
	Version  string // of bhive
	Backend  string // cpu, cuda
	Device   string
	Weights  string       // format of the base's weights
	Defaults infer.Params // sampling parameters where a request names none: the model's generation config
}

// Server is the HTTP side. Make it with New.
type Server struct {
	config   Config
	d        Deps
	log      *slog.Logger
	keys     *keys.Ring
	metrics  *Metrics
	probe    *probe
	meter    *meter
	claims   claims
	bodies   bodies
	handler  http.Handler
	imports  chan struct{}         // holds one for each import or sum at work
	exports  sync.Map              // of a tenant: chan struct{}, which holds one for each export at work
	grammars func() *grammar.Cache // made at the first call
	draining atomic.Bool
	drained  chan struct{} // closed when draining begins
}

// drain refuses new work from now on.
func (s *Server) drain() {
	if !s.draining.Swap(true) {
		close(s.drained)
	}
}

// maxImports is how many adapters are read or summed at once; others wait.
const maxImports = 2

// maxExports is how many adapters one tenant's clients read out at once; others wait.
const maxExports = 4

// New makes a server; it acquires nothing.
func New(c Config, d Deps) (*Server, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	s := &Server{config: c.defaults(), d: d, log: d.Log, keys: keys.New(d.Store), imports: make(chan struct{}, maxImports), drained: make(chan struct{})}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.metrics = d.Metrics; s.metrics == nil {
		s.metrics = NewMetrics()
	}
	s.meter = newMeter(s.config.Quotas)
	s.bodies = bodies{most: s.config.MaxTrainingBytes, taken: map[string]int64{}}
	if s.d.ToolCalls == "" {
		s.d.ToolCalls = toolcall.Find(d.Template)
	}
	s.claims = claims{tenants: map[string][]*claim{}}
	s.probe = &probe{store: d.Store, log: s.log}
	s.metrics.bind(d, s.probe)
	s.grammars = sync.OnceValue(func() *grammar.Cache { return newGrammars(d) })
	s.handler = s.routes()
	return s, nil
}

// Handler is the routes with their middlewares.
func (s *Server) Handler() http.Handler { return s.handler }

func (s *Server) routes() http.Handler {
	r := chi.NewRouter()
	r.Use(withRequestID, s.withAccessLog, s.withRecover, s.withOriginCheck, s.withTenant, s.withQuery)
	r.NotFound(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Code: "unknown_url", Message: fmt.Sprintf("Unknown request URL: %s %s", r.Method, r.URL.Path)})
	})
	r.MethodNotAllowed(func(w http.ResponseWriter, r *http.Request) {
		s.fail(w, r, &apiError{Status: http.StatusMethodNotAllowed, Type: "invalid_request_error", Code: "method_not_allowed", Message: fmt.Sprintf("Not allowed to %s on %s", r.Method, r.URL.Path)})
	})
	r.Post("/v1/completions", s.handle(s.createCompletion))
	r.Post("/v1/chat/completions", s.handle(s.createChatCompletion))
	r.With(s.withScope).Get("/v1/models", s.handle(s.listModels))
	r.Get("/v1/models/{model}", s.handle(s.retrieveModel))
	r.Delete("/v1/models/{model}", s.handle(s.deleteModel))

	r.Group(func(r chi.Router) {
		r.Use(s.withScope)
		r.Post("/v1/files", s.handle(s.createFile))
		r.Get("/v1/files", s.handle(s.listFiles))
		r.Post("/v1/fine_tuning/jobs", s.handle(s.createFineTuningJob))
		r.Get("/v1/fine_tuning/jobs", s.handle(s.listFineTuningJobs))
		r.Get("/adapters", s.handle(s.listAdapters))
		r.Post("/adapters", s.handle(s.withExamples(s.createAdapter)))
	})
	r.Group(func(r chi.Router) {
		r.Use(s.withOwner("file", func(id string) error { return fileNotFound("id", id) }))
		r.Get("/v1/files/{file}", s.handle(s.retrieveFile))
		r.Delete("/v1/files/{file}", s.handle(s.deleteFile))
		r.Get("/v1/files/{file}/content", s.handle(s.fileContent))
	})
	r.Group(func(r chi.Router) {
		r.Use(s.withOwner("job", func(id string) error { return fmt.Errorf("job %q: %w", id, finetune.ErrNotFound) }))
		r.Get("/v1/fine_tuning/jobs/{job}", s.handle(s.retrieveFineTuningJob))
		r.Post("/v1/fine_tuning/jobs/{job}/cancel", s.handle(s.tuningAction(s.d.Jobs.Cancel)))
		r.Post("/v1/fine_tuning/jobs/{job}/pause", s.handle(s.tuningAction(s.d.Jobs.Pause)))
		r.Post("/v1/fine_tuning/jobs/{job}/resume", s.handle(s.tuningAction(s.d.Jobs.Resume)))
		r.Get("/v1/fine_tuning/jobs/{job}/events", s.handle(s.listTuningEvents))
		r.Get("/v1/fine_tuning/jobs/{job}/checkpoints", s.handle(s.listTuningCheckpoints))
	})

	r.With(s.withAdmin).Post("/v1/load_lora_adapter", s.handle(s.loadLoRA))
	r.With(s.withAdmin).Post("/v1/unload_lora_adapter", s.handle(s.unloadLoRA))

	r.Route("/adapters/{name}", func(r chi.Router) {
		r.Use(s.withOwner("name", func(name string) error { return notFound(name) }))
		r.Get("/", s.handle(s.getAdapter))
		r.Delete("/", s.handle(s.deleteAdapter))
		r.Get("/versions", s.handle(s.listVersions))
		r.Get("/versions/{version}", s.handle(s.getVersion))
		r.Delete("/versions/{version}", s.handle(s.deleteVersion))
		r.Post("/rollback", s.handle(s.rollback))
		r.Get("/export", s.handle(s.exportAdapter))
		r.Post("/import", s.handle(s.importAdapter))
		r.Post("/compose", s.handle(s.composeAdapter))
		r.Post("/examples", s.handle(s.withExamples(s.addExamples)))
		r.Get("/jobs", s.handle(s.listJobs))
		r.Get("/events", s.handle(s.streamEvents))
		r.Post("/pause", s.handle(s.jobAction(s.d.Jobs.Pause)))
		r.Post("/resume", s.handle(s.jobAction(s.d.Jobs.Resume)))
		r.Post("/cancel", s.handle(s.jobAction(s.d.Jobs.Cancel)))
	})
	r.Get("/basis", s.handle(s.getBasis))
	r.Get("/basis/file", s.handle(s.basisFile))
	r.Post("/tokenize", s.handle(s.tokenize))
	r.Post("/detokenize", s.handle(s.detokenize))
	r.Get("/health", s.handle(s.health))
	r.Get("/ready", s.handle(s.ready))
	r.Get("/ping", s.handle(s.health))
	r.Post("/ping", s.handle(s.health))
	r.Get("/version", s.handle(s.version))
	r.Get("/openapi.yaml", s.handle(s.openAPI))
	metrics := r.With(s.withAdmin)
	if s.config.OpenMetrics {
		metrics = r
	}
	metrics.Get("/metrics", s.metrics.handler().ServeHTTP)
	r.Route("/admin/keys", func(r chi.Router) {
		r.Use(s.withAdmin)
		r.Get("/", s.handle(s.listKeys))
		r.Post("/", s.handle(s.createKey))
		r.Delete("/{id}", s.handle(s.deleteKey))
	})
	return r
}

// handle adapts a handler that returns its error. Once such a handler has begun to write, it reports errors itself and returns nil.
func (s *Server) handle(h func(http.ResponseWriter, *http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// Listen is Front's.
func (s *Server) Listen(ctx context.Context) (net.Listener, error) { return s.front().Listen(ctx) }

// Run is Front's, with this server behind it.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	f := s.front()
	f.Serve(s)
	return f.Run(ctx, l)
}

func (s *Server) front() *Front { return &Front{config: s.config, keys: s.keys, log: s.log} }
