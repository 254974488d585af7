package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"syscall"

	"bhive/adapters"
	"bhive/finetune"
	"bhive/infer"
	"bhive/infer/chat"
)

// apiError is an error as the client gets it. Handlers return one, or an error of another package that the table below maps.
type apiError struct {
	Status  int
	Type    string // OpenAI's: invalid_request_error, not_found_error, rate_limit_error, server_error …
	Param   string // field, or ""
	Code    string // or ""
	Message string
	Retry   int // seconds for Retry-After; 0: no header
}

func (e *apiError) Error() string { return e.Message }

// badField is a 400 that names a field.
func badField(param, format string, args ...any) *apiError {
	return &apiError{Status: http.StatusBadRequest, Type: "invalid_request_error", Param: param, Message: fmt.Sprintf(format, args...)}
}

// ErrNoKeys is returned by Listen for an address that other machines reach while the registry has no API keys.
var ErrNoKeys = errors.New("not a loopback address, and there are no API keys to protect it")

// errDraining is returned for new work while the server shuts down.
var errDraining = errors.New("the server is shutting down")

// statusClientClosed is nginx's code for a client that went away; nobody reads it but the log.
const statusClientClosed = 499

// table maps the sentinel errors of other packages. The first that matches counts.
var table = []struct {
	err    error
	status int
	kind   string
	code   string
	param  string
	retry  int
}{
	{infer.ErrQueueFull, http.StatusTooManyRequests, "rate_limit_error", "queue_full", "", 1},
	{finetune.ErrBusy, http.StatusTooManyRequests, "rate_limit_error", "too_many_jobs", "", 30},
	{infer.ErrPromptTooLong, http.StatusBadRequest, "invalid_request_error", "context_length_exceeded", "prompt", 0},
	{infer.ErrMaxTokens, http.StatusBadRequest, "invalid_request_error", "context_length_exceeded", "max_tokens", 0},
	{errDraining, http.StatusServiceUnavailable, "server_error", "shutting_down", "", 5},
	{errLoading, http.StatusServiceUnavailable, "server_error", "loading", "", 5},
	{infer.ErrClosed, http.StatusServiceUnavailable, "server_error", "shutting_down", "", 5},
	{finetune.ErrClosed, http.StatusServiceUnavailable, "server_error", "shutting_down", "", 5},
	{finetune.ErrDevice, http.StatusNotImplemented, "invalid_request_error", "no_training_on_device", "", 0},
	{finetune.ErrNotFound, http.StatusNotFound, "not_found_error", "job_not_found", "", 0},
	{finetune.ErrState, http.StatusConflict, "conflict_error", "wrong_state", "", 0},
	{chat.ErrMessage, http.StatusBadRequest, "invalid_request_error", "", "messages", 0},
	{adapters.ErrInvalidName, http.StatusBadRequest, "invalid_request_error", "invalid_name", "name", 0},
	{adapters.ErrStoreUnavailable, http.StatusServiceUnavailable, "server_error", "store_unavailable", "", 5},
	{adapters.ErrClosed, http.StatusServiceUnavailable, "server_error", "shutting_down", "", 5},
	{adapters.ErrNoMemory, http.StatusServiceUnavailable, "server_error", "no_adapter_memory", "", 5},
	{infer.ErrNoMemory, http.StatusServiceUnavailable, "server_error", "no_gpu_memory", "", 5},
	{adapters.ErrExists, http.StatusConflict, "conflict_error", "already_exists", "name", 0},
	{adapters.ErrBasisMismatch, http.StatusConflict, "conflict_error", "basis_mismatch", "", 0},
	{adapters.ErrBaseMismatch, http.StatusConflict, "conflict_error", "base_mismatch", "", 0},
	{adapters.ErrConflict, http.StatusConflict, "conflict_error", "conflict", "", 0},
	{adapters.ErrRank, http.StatusBadRequest, "invalid_request_error", "bad_rank", "rank", 0},
	{adapters.ErrUnsupported, http.StatusBadRequest, "invalid_request_error", "not_supported", "", 0},
	{adapters.ErrNotFound, http.StatusNotFound, "not_found_error", "not_found", "", 0},
	{adapters.ErrCorrupt, http.StatusInternalServerError, "server_error", "corrupt_adapter", "", 0},
	{infer.ErrAdapterLoad, http.StatusServiceUnavailable, "server_error", "adapter_not_loaded", "model", 5}, // for another reason than those above
	{context.Canceled, statusClientClosed, "server_error", "client_closed", "", 0},
	{context.DeadlineExceeded, http.StatusGatewayTimeout, "server_error", "timeout", "", 0},
}

// asAPIError finds what the client is told about err.
func asAPIError(err error) *apiError {
	var api *apiError
	var param *infer.ParamError
	var field *finetune.FieldError
	var examples *finetune.ExamplesError
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &api):
		return api
	case errors.As(err, &param):
		return badField(param.Param, "%s: %s", param.Param, param.Message)
	case errors.As(err, &tooLarge):
		return &apiError{Status: http.StatusRequestEntityTooLarge, Type: "invalid_request_error", Code: "too_large",
			Message: fmt.Sprintf("the body is larger than the limit of %d bytes", tooLarge.Limit)}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return &apiError{Status: http.StatusInsufficientStorage, Type: "server_error", Code: "disk_full", Retry: 60,
			Message: "the disk of the registry is full, and nothing was stored"}
	case errors.As(err, &examples):
		e := badField("examples", "%s", examples.Error())
		if examples.Param != "" {
			e.Param = examples.Param
		}
		e.Code = "invalid_training_file"
		return e
	}
	inField := errors.As(err, &field)
	for _, row := range table {
		if !errors.Is(err, row.err) {
			continue
		}
		e := &apiError{Status: row.status, Type: row.kind, Param: row.param, Code: row.code, Message: err.Error(), Retry: row.retry}
		if row.err == infer.ErrNoMemory {
			e.Message = "no GPU memory for this request now"
		}
		if inField { // which of the fields is to blame, and in its words
			e.Param, e.Message = field.Field, field.Error()
		}
		return e
	}
	if inField {
		return badField(field.Field, "%s", field.Error())
	}
	return &apiError{Status: http.StatusInternalServerError, Type: "server_error", Code: "internal_error", Message: "internal error"}
}

// body is the error in OpenAI's shape.
func (e *apiError) body() []byte {
	optional := func(s string) *string {
		if s == "" {
			return nil
		}
		return &s
	}
	var out struct {
		Error struct {
			Message string  `json:"message"`
			Type    string  `json:"type"`
			Param   *string `json:"param"`
			Code    *string `json:"code"`
		} `json:"error"`
	}
	out.Error.Message, out.Error.Type, out.Error.Param, out.Error.Code = e.Message, e.Type, optional(e.Param), optional(e.Code)
	return mustJSON(out)
}

// fail answers with err; a 500 is logged with its cause, which the client is not told.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) {
	e := asAPIError(err)
	if e.Status == http.StatusInternalServerError {
		s.log.ErrorContext(r.Context(), "request failed", "request", requestID(r.Context()), "path", r.URL.Path, "error", err)
	}
	writeError(w, e)
}

func writeError(w http.ResponseWriter, e *apiError) {
	if e.Retry > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(e.Retry))
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(e.Status)
	_, _ = w.Write(append(e.body(), '\n')) // a client that went away is no error of ours
}

// modelNotFound is OpenAI's answer to an unknown model.
func modelNotFound(model string) *apiError {
	return &apiError{Status: http.StatusNotFound, Type: "invalid_request_error", Param: "model", Code: "model_not_found",
		Message: fmt.Sprintf("The model `%s` does not exist", model)}
}
