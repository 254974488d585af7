package clients

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

const model = "demo"

// connect makes a client of the environment alone.
func connect(t *testing.T) openai.Client {
	t.Helper()
	if os.Getenv("OPENAI_BASE_URL") == "" {
		t.Skip("OPENAI_BASE_URL names no server; make test-clients starts one")
	}
	return openai.NewClient(option.WithMaxRetries(0))
}

// fails wants an error of the API.
func fails(t *testing.T, err error, status int, param, code string) {
	t.Helper()
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != status || e.Param != param || e.Code != code || e.Message == "" {
		t.Errorf("the error is %#v (%v), want status %d, param %q, code %q", e, err, status, param, code)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			var e *openai.Error
			if errors.As(err, &e) {
				t.Fatal(err, e.RawJSON())
			}
			t.Fatal(err)
		}
		return v
	}
}

func fox() []openai.ChatCompletionMessageParamUnion {
	return []openai.ChatCompletionMessageParamUnion{openai.UserMessage("What is a fox?")}
}

func TestModels(t *testing.T) {
	c := connect(t)
	found := false
	for pages := c.Models.ListAutoPaging(t.Context()); pages.Next(); {
		found = found || pages.Current().ID == model
	}
	if !found {
		t.Errorf("%s is not among the models", model)
	}
	if m := must(c.Models.Get(t.Context(), model))(t); m.ID != model || m.OwnedBy == "" {
		t.Errorf("%s", m.RawJSON())
	}
	_, err := c.Models.Get(t.Context(), "nobody")
	fails(t, err, 404, "model", "model_not_found")
}

func TestCompletions(t *testing.T) {
	c := connect(t)
	ask := openai.CompletionNewParams{Model: model, Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("The fox")},
		MaxTokens: openai.Int(12), Temperature: openai.Float(0)}
	want := must(c.Completions.New(t.Context(), ask))(t)
	text, tokens := "", int64(0)
	streamed := ask
	streamed.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := c.Completions.NewStreaming(t.Context(), streamed)
	for stream.Next() {
		for _, choice := range stream.Current().Choices {
			text += choice.Text
		}
		tokens += stream.Current().Usage.CompletionTokens
	}
	if err := stream.Err(); err != nil || text != want.Choices[0].Text || tokens != want.Usage.CompletionTokens {
		t.Errorf("streamed %q (%d tokens, %v), want %s", text, tokens, err, want.RawJSON())
	}
	echo := ask
	echo.Echo, echo.Logprobs, echo.N, echo.BestOf = openai.Bool(true), openai.Int(1), openai.Int(1), openai.Int(2)
	got := must(c.Completions.New(t.Context(), echo))(t).Choices
	if len(got) != 1 || strings.Join(got[0].Logprobs.Tokens, "") != got[0].Text || !strings.HasPrefix(got[0].Text, "The fox") {
		t.Errorf("echoed: %+v", got)
	}
	ask.Suffix = openai.String("the end")
	_, err := c.Completions.New(t.Context(), ask)
	fails(t, err, 400, "suffix", "")
}

func TestChat(t *testing.T) {
	c := connect(t)
	ask := openai.ChatCompletionNewParams{Model: model, Messages: fox(), MaxCompletionTokens: openai.Int(200), Temperature: openai.Float(0)}
	want := must(c.Chat.Completions.New(t.Context(), ask))(t)
	var acc openai.ChatCompletionAccumulator
	stream := c.Chat.Completions.NewStreaming(t.Context(), ask)
	for stream.Next() {
		if !acc.AddChunk(stream.Current()) {
			t.Fatalf("the client cannot add %s", stream.Current().RawJSON())
		}
	}
	if err := stream.Err(); err != nil || acc.Choices[0].Message.Content != want.Choices[0].Message.Content || acc.Choices[0].FinishReason != want.Choices[0].FinishReason {
		t.Errorf("streamed %+v (%v), want %s", acc.Choices, err, want.RawJSON())
	}
	ask.Logprobs, ask.TopLogprobs = openai.Bool(true), openai.Int(2)
	for _, token := range must(c.Chat.Completions.New(t.Context(), ask))(t).Choices[0].Logprobs.Content {
		if token.Logprob > 0 || len(token.TopLogprobs) != 2 {
			t.Errorf("logprobs %s", token.RawJSON())
		}
	}
	ask.TopP = openai.Float(2)
	_, err := c.Chat.Completions.New(t.Context(), ask)
	fails(t, err, 400, "top_p", "")
	_, err = c.Chat.Completions.New(t.Context(), openai.ChatCompletionNewParams{Model: "nobody", Messages: fox()})
	fails(t, err, 404, "model", "model_not_found")
}

func TestTools(t *testing.T) {
	c := connect(t)
	ask := openai.ChatCompletionNewParams{Model: model, Messages: fox(), MaxTokens: openai.Int(60), Temperature: openai.Float(0),
		Tools: []openai.ChatCompletionToolUnionParam{openai.ChatCompletionFunctionTool(openai.FunctionDefinitionParam{Name: "wait", Strict: openai.Bool(true),
			Parameters: openai.FunctionParameters{"type": "object", "properties": map[string]any{"days": map[string]any{"type": "integer", "minimum": 1, "maximum": 9}},
				"required": []string{"days"}, "additionalProperties": false}})},
		ToolChoice: openai.ToolChoiceOptionFunctionToolChoice(openai.ChatCompletionNamedToolChoiceFunctionParam{Name: "wait"})}
	choice := must(c.Chat.Completions.New(t.Context(), ask))(t).Choices[0]
	if len(choice.Message.ToolCalls) != 1 || choice.FinishReason != "tool_calls" {
		t.Fatalf("%s", choice.RawJSON())
	}
	call := choice.Message.ToolCalls[0]
	var arguments struct{ Days int }
	if err := json.Unmarshal([]byte(call.Function.Arguments), &arguments); err != nil || call.Function.Name != "wait" || arguments.Days < 1 || arguments.Days > 9 {
		t.Errorf("%s, %v", call.RawJSON(), err)
	}
	var acc openai.ChatCompletionAccumulator
	finished := ""
	stream := c.Chat.Completions.NewStreaming(t.Context(), ask)
	for stream.Next() {
		if !acc.AddChunk(stream.Current()) {
			t.Fatalf("the client cannot add %s", stream.Current().RawJSON())
		}
		if tool, ok := acc.JustFinishedToolCall(); ok {
			finished = tool.Name + " " + tool.Arguments
		}
	}
	if err := stream.Err(); err != nil || finished != "wait "+call.Function.Arguments {
		t.Errorf("streamed %q, %v, want %s", finished, err, call.RawJSON())
	}
	ask.Messages = append(ask.Messages, choice.Message.ToParam(), openai.ToolMessage("done", call.ID))
	ask.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("none")}
	if got := must(c.Chat.Completions.New(t.Context(), ask))(t).Choices[0]; len(got.Message.ToolCalls) != 0 {
		t.Errorf("%s", got.RawJSON())
	}
	ask.Tools = nil
	ask.ToolChoice = openai.ChatCompletionToolChoiceOptionUnionParam{OfAuto: openai.String("required")}
	_, err := c.Chat.Completions.New(t.Context(), ask)
	fails(t, err, 400, "tool_choice", "")
}

func TestSchema(t *testing.T) {
	c := connect(t)
	ask := openai.ChatCompletionNewParams{Model: model, Messages: fox(), MaxTokens: openai.Int(150), Temperature: openai.Float(0)}
	format := func(schema map[string]any) {
		ask.ResponseFormat.OfJSONSchema = &openai.ResponseFormatJSONSchemaParam{JSONSchema: openai.ResponseFormatJSONSchemaJSONSchemaParam{Name: "animal", Strict: openai.Bool(true), Schema: schema}}
	}
	format(map[string]any{"type": "object", "properties": map[string]any{"name": map[string]any{"type": "string"}, "legs": map[string]any{"enum": []int{2, 4, 6}}},
		"required": []string{"name", "legs"}, "additionalProperties": false})
	var animal struct {
		Name string
		Legs int
	}
	text := must(c.Chat.Completions.New(t.Context(), ask))(t).Choices[0].Message.Content
	if err := json.Unmarshal([]byte(text), &animal); err != nil || animal.Legs%2 != 0 || animal.Legs < 2 {
		t.Errorf("%q, %v", text, err)
	}
	format(map[string]any{"type": "thing"})
	_, err := c.Chat.Completions.New(t.Context(), ask)
	fails(t, err, 400, "response_format.json_schema.schema", "")
}

func TestFiles(t *testing.T) {
	c := connect(t)
	var ids, listed []string
	for _, name := range []string{"go0.jsonl", "go1.jsonl"} {
		f := must(c.Files.New(t.Context(), openai.FileNewParams{File: openai.File(strings.NewReader("{\"text\": \"a\"}\n"), name, "application/jsonl"), Purpose: openai.FilePurposeFineTune}))(t)
		ids = append(ids, f.ID)
	}
	pages := c.Files.ListAutoPaging(t.Context(), openai.FileListParams{Limit: openai.Int(1), Order: openai.FileListParamsOrderAsc}) // a page a file
	for pages.Next() {
		if id := pages.Current().ID; id == ids[0] || id == ids[1] {
			listed = append(listed, id)
		}
	}
	if err := pages.Err(); err != nil || strings.Join(listed, " ") != strings.Join(ids, " ") {
		t.Errorf("listed %v (%v), want %v", listed, err, ids)
	}
	content := must(c.Files.Content(t.Context(), ids[0]))(t)
	if text, err := io.ReadAll(content.Body); err != nil || string(text) != "{\"text\": \"a\"}\n" {
		t.Errorf("content %q, %v", text, err)
	}
	for _, id := range ids {
		if !must(c.Files.Delete(t.Context(), id))(t).Deleted {
			t.Errorf("%s was not deleted", id)
		}
	}
	_, err := c.Files.Get(t.Context(), ids[0])
	fails(t, err, 404, "id", "file_not_found")
}

func TestFineTuning(t *testing.T) {
	c := connect(t)
	jobs := c.FineTuning.Jobs
	examples := must(os.Open(os.Getenv("EXAMPLES")))(t)
	defer examples.Close()
	file := must(c.Files.New(t.Context(), openai.FileNewParams{File: examples, Purpose: openai.FilePurposeFineTune}))(t)
	tune := func(suffix string, epochs int64) openai.FineTuningJobNewParams {
		p := openai.FineTuningJobNewParams{Model: model, TrainingFile: file.ID, Suffix: openai.String(suffix)}
		p.Method.Type = "supervised"
		p.Method.Supervised.Hyperparameters.NEpochs.OfInt = openai.Int(epochs)
		p.Method.Supervised.Hyperparameters.BatchSize.OfInt = openai.Int(8)
		return p
	}
	long := must(jobs.New(t.Context(), tune("go-long", 1000)))(t)
	job := must(jobs.New(t.Context(), tune("go", 2)))(t)
	var listed []string
	pages := jobs.ListAutoPaging(t.Context(), openai.FineTuningJobListParams{Limit: openai.Int(1)})
	for pages.Next() {
		if id := pages.Current().ID; id == job.ID || id == long.ID {
			listed = append(listed, id)
		}
	}
	if err := pages.Err(); err != nil || strings.Join(listed, " ") != job.ID+" "+long.ID {
		t.Errorf("listed %v (%v), want %s and %s", listed, err, job.ID, long.ID)
	}
	must(jobs.Cancel(t.Context(), long.ID))(t)
	final := func(id string) *openai.FineTuningJob {
		for {
			j := must(jobs.Get(t.Context(), id))(t)
			switch j.Status {
			case openai.FineTuningJobStatusSucceeded, openai.FineTuningJobStatusFailed, openai.FineTuningJobStatusCancelled:
				return j
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	if j := final(job.ID); j.Status != openai.FineTuningJobStatusSucceeded || j.FineTunedModel != "go" || j.TrainedTokens == 0 {
		t.Fatalf("%s", j.RawJSON())
	}
	if j := final(long.ID); j.Status != openai.FineTuningJobStatusCancelled || j.FineTunedModel != "" {
		t.Errorf("%s", j.RawJSON())
	}
	events := 0
	list := jobs.ListEventsAutoPaging(t.Context(), job.ID, openai.FineTuningJobListEventsParams{Limit: openai.Int(5)})
	for list.Next() {
		events++
	}
	if list.Err() != nil || events <= 5 {
		t.Errorf("%d events, %v", events, list.Err())
	}
	checkpoints := must(jobs.Checkpoints.List(t.Context(), job.ID, openai.FineTuningJobCheckpointListParams{}))(t)
	if len(checkpoints.Data) != 1 || checkpoints.Data[0].FineTunedModelCheckpoint != "go@1" {
		t.Errorf("%s", checkpoints.RawJSON())
	}
	ask := func(model string) (string, error) {
		a, err := c.Chat.Completions.New(t.Context(), openai.ChatCompletionNewParams{Model: model, Messages: fox(), MaxTokens: openai.Int(12), Temperature: openai.Float(0)})
		if err != nil {
			return "", err
		}
		return a.Choices[0].Message.Content, nil
	}
	if tuned, base := must(ask("go"))(t), must(ask(model))(t); tuned == base {
		t.Errorf("the new model says %q, as the base does", tuned)
	}
	must(c.Models.Delete(t.Context(), "go"))(t)
	_, err := ask("go")
	fails(t, err, 404, "model", "model_not_found")
	_, err = jobs.Get(t.Context(), "ftjob-none")
	fails(t, err, 404, "", "job_not_found")
}
