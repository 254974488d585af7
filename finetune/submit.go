package finetune

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"bhive/adapters"
)

// Submit checks the spec, stores it with its examples and queues the job. Errors: *FieldError (also for an unknown parent),
// *ExamplesError (later, as the job's error, where Deferred), adapters.ErrExists, adapters.ErrRank, ErrBusy, ErrClosed, ErrDevice. The job is durable
// when Submit returns.
func (m *Manager) Submit(ctx context.Context, spec JobSpec) (Job, error) {
	if err := m.check(ctx, &spec); err != nil {
		return Job{}, err
	}
	j := &job{spec: spec, data: jobData{Base: m.d.Model.Basis.BaseHash}}
	j.spec.Training, j.spec.Validation, j.spec.Examples = nil, nil, nil
	id := make([]byte, 12)
	if _, err := rand.Read(id); err != nil {
		return Job{}, fmt.Errorf("naming a job: %w", err)
	}
	now := time.Now().UTC()
	j.public = Job{ID: "ftjob-" + hex.EncodeToString(id), Tenant: tenantOf(spec.Tenant), Spec: j.spec, State: Queued, Created: now}
	if err := m.do(ctx, func(done func(error)) { done(m.admit(j)) }); err != nil { // before anything is stored; create asks again
		return Job{}, err
	}
	j.data.Param = "training_file"
	training := spec.Training
	if training == nil {
		j.data.Param, training = "examples", InlineReader(spec.Examples)
	}
	var err error
	if spec.Validation != nil { // a file that is stored already goes first: where the other is refused, nothing is left
		if j.data.Validation, err = m.keep(ctx, spec, "validation_file", spec.Validation); err != nil {
			return Job{}, err
		}
	}
	if j.data.Training, err = m.keep(ctx, spec, j.data.Param, training); err != nil {
		return Job{}, err
	}
	err = m.do(ctx, func(done func(error)) { done(m.create(ctx, j)) })
	if err != nil {
		return Job{}, err
	}
	return m.Get(ctx, spec.Tenant, j.public.ID)
}

// keep stores a file of examples. Unless the spec is Deferred they are read for their errors on their way to the store, which has the end of them only
// when there are none: of a file that is refused nothing is kept.
func (m *Manager) keep(ctx context.Context, spec JobSpec, param string, r io.Reader) (string, error) {
	limited := &limitReader{r: r, left: m.c.Limits.FileBytes}
	out, in := io.Pipe()
	defer in.CloseWithError(errRefused)
	var blob adapters.BlobInfo
	stored := make(chan error, 1)
	go func() {
		var err error
		blob, err = m.st.PutBlob(ctx, spec.Tenant, out)
		_ = out.CloseWithError(err) // nobody reads on
		stored <- err
	}()
	var bad error
	if tee := io.TeeReader(limited, in); spec.Deferred {
		_, bad = io.Copy(io.Discard, tee)
	} else {
		_, bad = m.parse(ctx, spec, param, tee, true)
	}
	if bad == nil {
		_ = in.Close()
	} else {
		_ = in.CloseWithError(errRefused)
	}
	err := <-stored
	switch {
	case limited.over:
		return "", &ExamplesError{Param: param, Total: 1, Lines: []LineError{{Line: 1, Message: fmt.Sprintf("the file is larger than %d bytes", m.c.Limits.FileBytes)}}}
	case limited.err != nil: // the store may have met only what follows from it: a context that has ended
		return "", fmt.Errorf("reading %s: %w", param, limited.err)
	case err != nil && !errors.Is(err, errRefused):
		return "", fmt.Errorf("storing examples: %w", err)
	case bad != nil:
		_, _ = io.Copy(io.Discard, limited) // a client hears it when all has been sent
		return "", bad
	}
	return blob.SHA256, nil
}

var errRefused = errors.New("the examples are refused")

// read parses stored examples.
func (m *Manager) read(ctx context.Context, spec JobSpec, param, sha string) (*Examples, error) {
	blob, err := m.st.OpenBlob(ctx, spec.Tenant, sha)
	if err != nil {
		return nil, fmt.Errorf("opening examples: %w", err)
	}
	defer blob.Close()
	return m.parse(ctx, spec, param, io.NewSectionReader(blob, 0, blob.Size()), false)
}

// parse reads examples, or only checks them: as many tenants as submit jobs at once need no memory for it.
func (m *Manager) parse(ctx context.Context, spec JobSpec, param string, r io.Reader, check bool) (*Examples, error) {
	longest := m.longest()
	if spec.MaxLength > 0 {
		longest = min(longest, spec.MaxLength)
	}
	return ReadExamples(ctx, r, m.d.Encoder,
		ReadOptions{Param: param, MaxLength: longest, Truncate: spec.Truncate, Raw: spec.Raw, Vocab: m.d.Model.Config.Vocab, Check: check, Limits: m.c.Limits})
}

// limitReader fails where there is more than left bytes.
type limitReader struct {
	r    io.Reader
	left int64
	over bool
	err  error // of r
}

func (l *limitReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		l.over = true
		return 0, errors.New("too large")
	}
	if err != nil && err != io.EOF {
		l.err = err
	}
	return n, err
}
