package server

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"bhive/server/api"
	"bhive/server/keys"
)

// newKey makes a key over HTTP and returns a client that brings it.
func (c *client) newKey(tenant, role string) (*client, api.APIKey) {
	c.t.Helper()
	var k api.APIKey
	c.post("/admin/keys", object{"tenant": tenant, "role": role}).want(201).into(&k)
	if k.Key == nil {
		c.t.Fatal("a new key comes without its secret")
	}
	return c.as(*k.Key), k
}

// tenants is a hive with keys: an administrator, anna and ben, each of the two with an adapter "style" and one named for her or him.
func tenants(t *testing.T) (h *hive, admin, anna, ben *client) {
	h = ownHive(t, hiveConfig{})
	open := h.serve(t, nil)
	admin, _ = open.newKey("default", "admin")
	anna, _ = admin.newKey("anna", "tenant")
	ben, _ = admin.newKey("ben", "tenant")
	for i, name := range []string{"anna", "ben"} {
		h.publishFor(t, name, "style", 4, uint64(i+1))
		h.publishFor(t, name, "of-"+name, 4, uint64(i+1))
	}
	return h, admin, anna, ben
}

func TestLifeOfAKey(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, nil)
	c.get("/v1/models").want(200) // no keys, on this machine
	c.post("/admin/keys", object{"tenant": "anna"}).wantError(409, "role", "last_admin")
	admin, adminKey := c.newKey("default", "admin")
	c.get("/v1/models").wantError(401, "", "invalid_api_key")
	anna, annaKey := admin.newKey("anna", "tenant")
	anna.get("/v1/models").want(200)

	// Kept are digests.
	raw, _, err := h.deps.Store.GetValue(t.Context(), keys.SystemTenant, "api-keys")
	if err != nil || strings.Contains(string(raw), anna.key) || !strings.Contains(string(raw), annaKey.Id) {
		t.Errorf("the registry holds %s, %v", raw, err)
	}
	list := string(admin.get("/admin/keys").want(200).Body)
	if strings.Contains(list, anna.key) || strings.Contains(list, "sha256") || !strings.Contains(list, annaKey.Id) {
		t.Errorf("the list of keys is %s", list)
	}

	// What is no key.
	flipped := []byte(anna.key)
	flipped[len(flipped)-1] ^= 1
	for _, bad := range []string{string(flipped), anna.key + "0", anna.key[:len(anna.key)-1], "sk-bhive-", "sk-bhive-0123456789abcdef-", "x", strings.Repeat("y", 5000)} {
		message := c.as(bad).get("/v1/models").wantError(401, "", "invalid_api_key")
		if len(bad) > 20 && strings.Contains(message, bad) {
			t.Errorf("the error shows the key: %s", message)
		}
	}
	for _, header := range []string{anna.key, "Basic " + anna.key, "Bearer", "Bearer "} {
		c.do("GET", "/v1/models", nil, "Authorization", header).wantError(401, "", "invalid_api_key")
	}
	c.do("GET", "/v1/models", nil, "Authorization", "bearer  "+anna.key).want(200)

	// Roles.
	for _, route := range []string{"GET /admin/keys", "POST /admin/keys", "DELETE /admin/keys/x", "GET /metrics"} {
		method, path, _ := strings.Cut(route, " ")
		anna.do(method, path, nil).wantError(403, "", "admin_required")
	}
	admin.get("/metrics").want(200)
	for _, path := range []string{"/health", "/ready", "/ping", "/version", "/openapi.yaml"} {
		c.get(path).want(200)
	}

	// Fields.
	admin.post("/admin/keys", object{"tenant": "No Name"}).wantError(400, "tenant", "")
	admin.post("/admin/keys", object{}).wantError(400, "tenant", "")
	admin.post("/admin/keys", object{"tenant": keys.SystemTenant}).wantError(400, "tenant", "")
	admin.post("/admin/keys", object{"tenant": "x", "role": "root"}).wantError(400, "role", "")
	admin.post("/admin/keys", object{"tenant": "x", "name": strings.Repeat("n", 200)}).wantError(400, "name", "")

	// Revocation counts at once, and the last administrator stays.
	admin.do("DELETE", "/admin/keys/"+adminKey.Id, nil).wantError(409, "role", "last_admin")
	admin.do("DELETE", "/admin/keys/"+annaKey.Id, nil).want(200)
	anna.get("/v1/models").wantError(401, "", "invalid_api_key")
	admin.do("DELETE", "/admin/keys/"+annaKey.Id, nil).wantError(404, "id", "key_not_found")
	admin.do("DELETE", "/admin/keys/"+adminKey.Id, nil).want(200) // no keys again
	c.get("/v1/models").want(200)
}

// Elsewhere than on this machine nothing goes without a key.
func TestBeyondLoopback(t *testing.T) {
	h := ownHive(t, hiveConfig{})
	c := h.serve(t, func(c *Config, _ *Deps) { c.Addr = "0.0.0.0:0" })
	if _, err := c.server.Listen(t.Context()); !errors.Is(err, ErrNoKeys) {
		t.Fatalf("listening to everybody without keys: %v", err)
	}
	c.get("/v1/models").wantError(401, "", "invalid_api_key")
	c.post("/admin/keys", object{"tenant": "default", "role": "admin"}).wantError(401, "", "invalid_api_key")
	k, secret, err := keys.New(h.deps.Store).Create(t.Context(), "default", keys.Admin, "")
	if err != nil {
		t.Fatal(err)
	}
	c = h.serve(t, func(c *Config, _ *Deps) { c.Addr = "0.0.0.0:0" }).as(secret)
	l, err := c.server.Listen(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	c.do("DELETE", "/admin/keys/"+k.ID, nil).wantError(409, "role", "last_admin")
	c.get("/v1/models").want(200)
}

// absent are the routes that name something, asked for what is another tenant's. Every route must be here or in shared.
var absent = map[string]struct {
	path string
	body any
}{
	"POST /v1/completions":                       {"/v1/completions", object{"model": "of-ben", "prompt": "a", "max_tokens": 1}},
	"POST /v1/chat/completions":                  {"/v1/chat/completions", object{"model": "style+of-ben@1:0.5", "messages": []object{{"role": "user", "content": "a"}}}},
	"GET /v1/models/{model}":                     {"/v1/models/ben%2Fstyle", nil},
	"GET /adapters/{name}":                       {"/adapters/of-ben", nil},
	"DELETE /adapters/{name}":                    {"/adapters/of-ben", nil},
	"GET /adapters/{name}/versions":              {"/adapters/ben%2Fstyle/versions", nil},
	"GET /adapters/{name}/versions/{version}":    {"/adapters/of-ben/versions/1", nil},
	"DELETE /adapters/{name}/versions/{version}": {"/adapters/of-ben/versions/1", nil},
	"POST /adapters/{name}/rollback":             {"/adapters/of-ben/rollback", object{"version": 1}},
	"POST /adapters/{name}/examples":             {"/adapters/of-ben/examples", object{"examples": []object{{"text": "a"}}}},
	"GET /adapters/{name}/jobs":                  {"/adapters/of-ben/jobs", nil},
	"GET /adapters/{name}/events":                {"/adapters/of-ben/events", nil},
	"POST /adapters/{name}/pause":                {"/adapters/of-ben/pause", nil},
	"POST /adapters/{name}/resume":               {"/adapters/of-ben/resume", nil},
	"POST /adapters/{name}/cancel":               {"/adapters/of-ben/cancel", nil},
	"GET /adapters/{name}/export":                {"/adapters/of-ben/export", nil},
	"POST /adapters/{name}/compose":              {"/adapters/sum/compose", object{"parts": []object{{"model": "of-ben", "weight": 1}}}},
	"DELETE /v1/models/{model}":                  {"/v1/models/of-ben", nil},
	"POST /tokenize":                             {"/tokenize", object{"model": "of-ben", "prompt": "a"}},
	"POST /detokenize":                           {"/detokenize", object{"model": "of-ben", "tokens": []int{1}}},
	"GET /v1/files/{file}":                       {"/v1/files/BENFILE", nil},
	"DELETE /v1/files/{file}":                    {"/v1/files/BENFILE", nil},
	"GET /v1/files/{file}/content":               {"/v1/files/BENFILE/content", nil},
	"POST /v1/fine_tuning/jobs":                  {"/v1/fine_tuning/jobs", object{"training_file": "BENFILE"}},
	"GET /v1/fine_tuning/jobs/{job}":             {"/v1/fine_tuning/jobs/BENJOB", nil},
	"POST /v1/fine_tuning/jobs/{job}/cancel":     {"/v1/fine_tuning/jobs/BENJOB/cancel", nil},
	"POST /v1/fine_tuning/jobs/{job}/pause":      {"/v1/fine_tuning/jobs/BENJOB/pause", nil},
	"POST /v1/fine_tuning/jobs/{job}/resume":     {"/v1/fine_tuning/jobs/BENJOB/resume", nil},
	"GET /v1/fine_tuning/jobs/{job}/events":      {"/v1/fine_tuning/jobs/BENJOB/events", nil},
	"GET /v1/fine_tuning/jobs/{job}/checkpoints": {"/v1/fine_tuning/jobs/BENJOB/checkpoints", nil},
	"POST /adapters":                             {"/adapters", object{"name": "x", "parent": "of-ben", "examples": []object{{"text": "a"}}}},
}

// unowned are the routes that name nothing of a tenant's: lists, which TestTenants looks into, and what is everybody's or an administrator's.
var unowned = []string{"GET /v1/models", "GET /adapters", "GET /v1/files", "POST /v1/files", "GET /v1/fine_tuning/jobs", "GET /ping", "POST /ping", "GET /basis", "GET /basis/file", "GET /health", "GET /ready", "GET /version", "GET /openapi.yaml", "GET /metrics",
	"POST /adapters/{name}/import", "POST /v1/load_lora_adapter", "POST /v1/unload_lora_adapter", "GET /admin/keys", "POST /admin/keys", "DELETE /admin/keys/{id}"}

func TestTenants(t *testing.T) {
	_, admin, anna, ben := tenants(t)
	// Something to find in every route: a file and a job of ben's.
	file := ben.upload("of-ben.jsonl", lines(pirates())).Id
	job := ben.tune(object{"training_file": file, "suffix": "training", "hyperparameters": object{"rank": 4, "max_steps": 5000}}).ID

	routes := map[string]bool{}
	for path, item := range openContract(t).model.Paths.PathItems.FromOldest() {
		for method := range item.GetOperations().FromOldest() {
			routes[strings.ToUpper(method)+" "+path] = true
		}
	}
	for _, route := range unowned {
		delete(routes, route)
	}
	for route := range routes {
		try, ok := absent[route]
		if !ok {
			t.Errorf("no test asks for another tenant's things by %s", route)
			continue
		}
		method, _, _ := strings.Cut(route, " ")
		body := func(r *strings.Replacer) any {
			if try.body == nil {
				return nil
			}
			return r.Replace(string(mustJSON(try.body)))
		}
		his := strings.NewReplacer("BENFILE", file, "BENJOB", job)
		there := anna.do(method, his.Replace(try.path), body(his))
		if there.Status != http.StatusNotFound {
			t.Errorf("%s of another tenant: %d %s", route, there.Status, there.Body)
		}
		// Word for word as if there were nothing.
		none := strings.NewReplacer("BENFILE", "file-nobody", "BENJOB", "ftjob-nobody", "of-ben", "nobody", "ben%2Fstyle", "no%2Fnobody", "ben/style", "no/nobody", file, "file-nobody", job, "ftjob-nobody")
		not := anna.do(method, none.Replace(try.path), body(none))
		if there.Status != not.Status || none.Replace(string(there.Body)) != string(not.Body) {
			t.Errorf("%s tells what is another's (%s) from what is not (%s)", route, there.Body, not.Body)
		}
	}

	// Lists.
	anna.upload("of-anna.jsonl", lines(pirates()))
	for _, path := range []string{"/v1/models", "/adapters", "/v1/files"} {
		for who, c := range map[string]*client{"anna": anna, "ben": ben} {
			got := string(c.get(path).want(200).Body)
			for _, name := range []string{"of-anna", "of-ben"} {
				if strings.Contains(got, name) != (name == "of-"+who) {
					t.Errorf("%s of %s: %s", path, who, got)
				}
			}
			if strings.Contains(got, "training") && who == "anna" {
				t.Errorf("%s of anna shows ben's job: %s", path, got)
			}
		}
		if got := string(admin.get(path).want(200).Body); strings.Contains(got, "of-") {
			t.Errorf("%s of the administrator's own tenant: %s", path, got)
		}
	}

	if got := string(anna.get("/v1/fine_tuning/jobs").want(200).Body); strings.Contains(got, job) {
		t.Errorf("anna's jobs: %s", got)
	}
	if got := string(ben.get("/v1/fine_tuning/jobs").want(200).Body); !strings.Contains(got, job) {
		t.Errorf("ben's jobs: %s", got)
	}

	// The same name is each one's own.
	greedy := func(model string) object {
		return object{"model": model, "prompt": "Once", "temperature": 0, "max_tokens": 8}
	}
	text := func(c *client, model string) string {
		var a struct{ Choices []struct{ Text string } }
		c.post("/v1/completions", greedy(model)).want(200).into(&a)
		return a.Choices[0].Text
	}
	hers, his := text(anna, "style"), text(ben, "style")
	if hers == his {
		t.Errorf("both styles say %q", hers)
	}
	if text(anna, "anna/style") != hers {
		t.Error("a tenant's own name with the tenant is another adapter")
	}
	anna.post("/v1/completions", greedy("ben/style")).wantError(404, "model", "model_not_found")
	anna.post("/v1/completions", greedy("style+ben/style")).wantError(404, "model", "model_not_found")

	// What one has asked of the base is in the prefix cache for nobody else.
	cached := func(c *client) int {
		t.Helper()
		var a struct {
			Usage struct {
				Details struct {
					Cached int `json:"cached_tokens"`
				} `json:"prompt_tokens_details"`
			}
		}
		c.post("/v1/completions", object{"model": "demo", "prompt": strings.Repeat("Once upon a time a fox met a bee. ", 8), "max_tokens": 1}).want(200).into(&a)
		return a.Usage.Details.Cached
	}
	if first, again, other := cached(anna), cached(anna), cached(ben); first != 0 || again == 0 || other != 0 {
		t.Errorf("of anna's prompt %d and then %d tokens were in the prefix cache, of ben's same prompt %d", first, again, other)
	}

	// An administrator reaches all.
	if text(admin, "anna/style") != hers || text(admin, "ben/style@1") != his {
		t.Error("an administrator's anna/style and ben/style say something else")
	}
	admin.post("/v1/completions", greedy("style")).wantError(404, "model", "model_not_found")
	admin.post("/v1/completions", greedy("anna/style:0.5+ben/style:0.5")).want(200)
	var m api.Model
	admin.get("/v1/models/anna%2Fstyle").want(200).into(&m)
	if m.Id != "anna/style" || m.Root == nil || *m.Root != "anna/style@1" {
		t.Errorf("the model is %s", mustJSON(m))
	}
	admin.get("/adapters/ben%2Fof-ben/versions").want(200)
	acrossTenants(t, admin, anna, ben, file, job)
	admin.get("/adapters/no%20body%2Fx").wantError(404, "name", "adapter_not_found")
	admin.post("/adapters/ben%2Ftraining/cancel", nil).want(200)
	admin.do("DELETE", "/adapters/ben%2Fof-ben", nil).want(200)
	ben.get("/adapters/of-ben").wantError(404, "name", "adapter_not_found")
	anna.get("/adapters/of-anna").want(200)
}

// acrossTenants looks at the adapters, files and jobs of others as an administrator, and as somebody who is none. file and job are ben's.
func acrossTenants(t *testing.T, admin, anna, ben *client, file, job string) {
	t.Helper()
	has := func(c *client, path string, want bool, parts ...string) {
		t.Helper()
		got := string(c.get(path).want(200).Body)
		for _, p := range parts {
			if strings.Contains(got, p) != want {
				t.Errorf("%s has %s: %v, want %v: %s", path, p, !want, want, got)
			}
		}
	}
	for path, here := range map[string]struct{ his, hers string }{
		"/adapters":            {`"ben/of-ben"`, `"anna/of-anna"`},
		"/v1/models":           {`"ben/of-ben"`, `"anna/of-anna"`},
		"/v1/files":            {`"ben/` + file + `"`, "anna/file-"},
		"/v1/fine_tuning/jobs": {`"ben/` + job + `"`, "anna/ftjob-"},
	} {
		has(admin, path+"?tenant=ben", true, here.his)
		has(admin, path+"?tenant=ben", false, here.hers)
		has(admin, path+"?tenant=*", true, here.his)
		has(admin, path+"?tenant=nobody", false, here.his, here.hers)
		has(ben, path+"?tenant=ben", false, here.his) // to him it has no other name
		anna.get(path+"?tenant=ben").wantError(403, "", "admin_required")
		anna.get(path+"?tenant=*").wantError(403, "", "admin_required")
		admin.get(path+"?tenant=no%20body").wantError(400, "tenant", "")
	}
	has(admin, "/adapters?tenant=*", true, `"anna/style"`, `"ben/style"`, `"ben/training"`)

	// What a list calls something is what its routes take.
	var a api.Adapter
	admin.get("/adapters/ben%2Ftraining").want(200).into(&a)
	if a.Name != "ben/training" || a.Job == nil || a.Job.Id != "ben/"+job {
		t.Errorf("ben's adapter is %s", mustJSON(a))
	}
	var f api.File
	admin.get("/v1/files/ben%2F" + file).want(200).into(&f)
	if f.Id != "ben/"+file {
		t.Errorf("ben's file is %s", mustJSON(f))
	}
	if got := string(admin.get("/v1/files/ben%2F" + file + "/content").want(200).Body); got != lines(pirates()) {
		t.Errorf("ben's file holds %q", got)
	}
	admin.get("/v1/files/"+file).wantError(404, "id", "file_not_found") // not of the administrator's own tenant
	admin.get("/v1/files/anna%2F"+file).wantError(404, "id", "file_not_found")
	var j tuningJob
	admin.get("/v1/fine_tuning/jobs/ben%2F" + job).want(200).into(&j)
	if j.ID != "ben/"+job || j.TrainingFile != "ben/"+file || j.Model != "demo" || j.OrganizationID != "ben" {
		t.Errorf("ben's job is %s", mustJSON(j))
	}
	has(admin, "/v1/fine_tuning/jobs/ben%2F"+job+"/events", true, "ftevent-")
	admin.get("/v1/fine_tuning/jobs/anna%2F"+job).wantError(404, "", "job_not_found")
	anna.get("/v1/fine_tuning/jobs/ben%2F"+job).wantError(404, "", "job_not_found")
	anna.get("/v1/files/ben%2F"+file).wantError(404, "id", "file_not_found")
	ben.get("/v1/files/ben%2F" + file).want(200)

	// Made for another tenant, it is that tenant's.
	admin.post("/adapters?tenant=anna", object{"name": "gift", "rank": 4, "max_steps": 5000, "examples": pirates()}).want(202).into(&a)
	if a.Name != "anna/gift" {
		t.Errorf("the gift is called %q", a.Name)
	}
	admin.do("POST", "/adapters?name=gift-too&rank=4&max_steps=5000&tenant=anna", lines(pirates()), "Content-Type", "application/x-ndjson").want(202)
	for _, name := range []string{"gift", "gift-too"} {
		anna.get("/adapters/" + name).want(200)
		admin.get("/adapters/"+name).wantError(404, "name", "adapter_not_found")
		admin.do("DELETE", "/adapters/anna%2F"+name, nil).want(200)
		anna.get("/adapters/"+name).wantError(404, "name", "adapter_not_found")
		var jobs api.JobList // the job is left to look at
		if anna.get("/adapters/" + name + "/jobs").want(200).into(&jobs); len(jobs.Data) != 1 || jobs.Data[0].State != "cancelled" {
			t.Errorf("deleted, %s has left %s", name, mustJSON(jobs))
		}
	}
	admin.post("/adapters?tenant=*", object{"name": "x", "examples": pirates()}).wantError(400, "tenant", "")
	anna.post("/adapters?tenant=ben", object{"name": "x", "examples": pirates()}).wantError(403, "", "admin_required")
	admin.post("/adapters/sum/compose", object{"parts": []object{{"model": "anna/style", "weight": 0.5}, {"model": "ben/style", "weight": 0.5}}}).want(201)
	admin.do("DELETE", "/adapters/sum", nil).want(200)
}
