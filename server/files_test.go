package server

import (
	"bytes"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"bhive/server/api"
)

// form is a multipart body of name, value pairs; a name "file=x" is a file called x.
func form(t testing.TB, pairs ...string) (body, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		name, file, isFile := strings.Cut(pairs[i], "=")
		create := func() (io.Writer, error) { return w.CreateFormField(name) }
		if isFile {
			create = func() (io.Writer, error) { return w.CreateFormFile(name, file) }
		}
		part, err := create()
		if err == nil {
			_, err = part.Write([]byte(pairs[i+1]))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String(), w.FormDataContentType()
}

func (c *client) form(pairs ...string) response {
	c.t.Helper()
	body, kind := form(c.t, pairs...)
	return c.do("POST", "/v1/files", body, "Content-Type", kind)
}

func (c *client) upload(name, content string) (f api.File) {
	c.t.Helper()
	c.form("purpose", "fine-tune", "file="+name, content).want(200).into(&f)
	return f
}

func TestFiles(t *testing.T) {
	c := ownHive(t, hiveConfig{}).serve(t, nil)
	content := lines(pirates())
	first := c.upload("pirates.jsonl", content)
	if first.Bytes != len(content) || first.Filename != "pirates.jsonl" || !strings.HasPrefix(first.Id, "file-") {
		t.Errorf("the file is %s", mustJSON(first))
	}
	var second api.File
	c.form("file=../../etc/x y.jsonl", "{\"text\":\"ü\"}\n", "purpose", "fine-tune", "unknown", "field").want(200).into(&second) // the other way round
	if second.Filename != "x y.jsonl" {
		t.Errorf("a name that is a path becomes %q", second.Filename)
	}
	third := c.upload("", content)

	if got := c.get("/v1/files/" + first.Id + "/content").want(200); string(got.Body) != content || got.Header.Get("Content-Type") != "application/octet-stream" {
		t.Errorf("content of %s: %q", got.Header.Get("Content-Type"), got.Body)
	}
	var again api.File
	if c.get("/v1/files/" + first.Id).want(200).into(&again); again != first {
		t.Errorf("retrieved: %s", mustJSON(again))
	}
	list := func(query string) (ids []string, more bool) {
		var l api.FileList
		c.get("/v1/files" + query).want(200).into(&l)
		for _, f := range l.Data {
			ids = append(ids, f.Id)
		}
		return ids, l.HasMore
	}
	for _, x := range []struct {
		query string
		want  []string
		more  bool
	}{
		{"", []string{third.Id, second.Id, first.Id}, false},
		{"?order=asc", []string{first.Id, second.Id, third.Id}, false},
		{"?limit=2", []string{third.Id, second.Id}, true},
		{"?limit=2&after=" + second.Id, []string{first.Id}, false},
		{"?purpose=fine-tune&order=asc&limit=1", []string{first.Id}, true},
		{"?purpose=batch", nil, false},
		{"?after=file-none", nil, false},
	} {
		if ids, more := list(x.query); fmt.Sprint(ids) != fmt.Sprint(x.want) || more != x.more {
			t.Errorf("%s: %v %v, want %v %v", x.query, ids, more, x.want, x.more)
		}
	}
	c.get("/v1/files?limit=0").wantError(400, "limit", "")
	c.get("/v1/files?order=up").wantError(400, "order", "")

	c.do("DELETE", "/v1/files/"+first.Id, nil).want(200)
	for _, id := range []string{first.Id, "file-none", "NO", "%2e%2e", strings.Repeat("x", 300)} {
		c.get("/v1/files/"+id).wantError(404, "id", "file_not_found")
		c.get("/v1/files/"+id+"/content").wantError(404, "id", "file_not_found")
		c.do("DELETE", "/v1/files/"+id, nil).wantError(404, "id", "file_not_found")
	}
	if got := c.get("/v1/files/" + third.Id + "/content").want(200); string(got.Body) != content { // same content as what was deleted
		t.Errorf("content after another file's end: %q", got.Body)
	}
}

func TestBadUploads(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, func(c *Config, _ *Deps) { c.MaxTrainingBytes = 1000 })
	c.upload("fits", strings.Repeat("x", 1000))
	c.form("purpose", "fine-tune", "file=a", strings.Repeat("x", 1001)).wantError(413, "", "too_large")
	c.form("purpose", "fine-tune", "file=a", strings.Repeat("x", 3<<20)).wantError(413, "", "too_large")
	c.form("purpose", "fine-tune", "note", strings.Repeat("x", 3<<20), "file=a", "x").wantError(413, "", "too_large")
	c.form("purpose", "assistants", "file=a", "x").wantError(400, "purpose", "")
	c.form("file=a", "x").wantError(400, "purpose", "")
	c.form("purpose", "fine-tune").wantError(400, "file", "")
	c.form("purpose", "fine-tune", "file=a", "").wantError(400, "file", "")
	c.form("purpose", "fine-tune", "file=a", "x", "file=b", "y").wantError(400, "file", "")
	c.form("purpose", "fine-tune", "file="+strings.Repeat("n", 300), "x").wantError(400, "file", "")
	c.form("purpose", "fine-tune", "file=a", "x", "expires_after[anchor]", "created_at").wantError(400, "expires_after", "")
	var many []string
	for range 20 {
		many = append(many, "note", "x")
	}
	c.form(many...).wantError(400, "", "")
	c.do("POST", "/v1/files", "{}").wantError(415, "", "unsupported_media_type")
	c.do("POST", "/v1/files", "x", "Content-Type", "multipart/form-data").wantError(400, "", "unreadable_body")
	body, kind := form(t, "purpose", "fine-tune", "file=a", "hello")
	for cut := range len(body) - 4 {
		if got := c.do("POST", "/v1/files", body[:cut], "Content-Type", kind); got.Status != http.StatusBadRequest {
			t.Fatalf("a form cut after %d of %d bytes: %d %s", cut, len(body), got.Status, got.Body)
		}
	}
	var l api.FileList
	if c.get("/v1/files").want(200).into(&l); len(l.Data) != 1 {
		t.Errorf("files that were refused are listed: %s", mustJSON(l))
	}
	if left, err := h.deps.Store.GC(t.Context(), 0); err != nil || left.Blobs != 0 {
		t.Errorf("what was refused has left %d blobs, %v", left.Blobs, err)
	}
}
