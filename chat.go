package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/term"
)

// chatCmd talks to a server.
type chatCmd struct {
	remote
	Message     []string `arg:"" optional:"" help:"One message to answer; without it a conversation is read from the terminal."`
	Model       string   `short:"m" help:"Base, adapter, version (name@7) or mix (a:0.7+b:0.3); default: the base." env:"BHIVE_CHAT_MODEL"`
	System      string   `short:"s" help:"System message."`
	Temperature *float64 `short:"t" help:"0 is greedy; default: the model's own." least:"0"`
	MaxTokens   int      `help:"Most tokens of an answer; default: as many as fit." env:"BHIVE_CHAT_MAX_TOKENS" least:"1"`
	Seed        *int64   `help:"The same seed gives the same text."`
}

type turn struct {
	Role    string `json:"role"`
	Content string `json:"content"`
}

// Run answers one message, or converses until the end of the input.
func (c *chatCmd) Run(ctx context.Context) error {
	var history []turn
	if c.System != "" {
		history = append(history, turn{"system", c.System})
	}
	if len(c.Message) > 0 {
		_, err := c.answer(ctx, append(history, turn{"user", strings.Join(c.Message, " ")}))
		return err
	}
	prompt := ""
	if term.IsTerminal(int(os.Stdin.Fd())) {
		prompt = "> "
		fmt.Println("Ask something; an empty line or Ctrl-D ends.")
	}
	// Nothing wakes a read from a terminal, so that it is left behind where ctx ends first.
	lines, failed := make(chan string), make(chan error, 1)
	go func() {
		scan := bufio.NewScanner(os.Stdin)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			lines <- scan.Text()
		}
		failed <- scan.Err()
	}()
	for {
		fmt.Print(prompt)
		select {
		case line := <-lines:
			if strings.TrimSpace(line) == "" {
				return nil
			}
			history = append(history, turn{"user", line})
			text, err := c.answer(ctx, history)
			if err != nil {
				return err
			}
			history = append(history, turn{"assistant", text})
		case err := <-failed:
			return err
		case <-ctx.Done():
			fmt.Println()
			return nil
		}
	}
}

// answer streams the answer to the terminal and returns it.
func (c *chatCmd) answer(ctx context.Context, history []turn) (string, error) {
	body := map[string]any{"model": c.Model, "messages": history, "stream": true}
	if c.Temperature != nil {
		body["temperature"] = *c.Temperature
	}
	if c.MaxTokens > 0 {
		body["max_tokens"] = c.MaxTokens
	}
	if c.Seed != nil {
		body["seed"] = *c.Seed
	}
	b, err := json.Marshal(body)
	if err != nil {
		return "", err
	}
	answer, err := c.send(ctx, "POST", "/v1/chat/completions", "application/json", bytes.NewReader(b))
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	var text strings.Builder
	done := false
	err = events(answer.Body, func(data []byte) error {
		if string(data) == "[DONE]" {
			done = true
			return nil
		}
		var chunk struct {
			Error   *struct{ Message string }
			Choices []struct{ Delta struct{ Content string } }
		}
		if err := json.Unmarshal(data, &chunk); err != nil {
			return fmt.Errorf("reading the answer: %w", err)
		}
		if chunk.Error != nil {
			return errors.New(chunk.Error.Message)
		}
		for _, choice := range chunk.Choices {
			text.WriteString(choice.Delta.Content)
			fmt.Print(choice.Delta.Content)
		}
		return nil
	})
	fmt.Println()
	if err == nil && !done {
		err = io.ErrUnexpectedEOF
	}
	return text.String(), err
}
