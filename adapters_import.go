package main

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strconv"

	"github.com/google/renameio/v2"

	"bhive/adapters"
	"bhive/server/api"
)

type exportCmd struct {
	remote
	Name    string `arg:"" help:"Adapter."`
	Out     string `arg:"" help:"Tar to write; - is the standard output." type:"path"`
	Version *int   `arg:"" optional:"" help:"Version; default: the live one."`
}

// Run writes an adapter as a tar of PEFT's files.
func (c *exportCmd) Run(ctx context.Context) (err error) {
	if info, err := os.Stat(c.Out); err == nil && info.IsDir() {
		return fmt.Errorf("exporting %s: %s is a directory; name the tar to write", c.Name, c.Out)
	}
	version, err := givenVersion(c.Version)
	if err != nil {
		return err
	}
	path := adapterPath(c.Name, "export")
	if version > 0 {
		path += "?version=" + strconv.Itoa(version)
	}
	answer, err := c.send(ctx, "GET", path, "", nil)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if filepath.Base(c.Out) == "-" {
		_, err = io.Copy(os.Stdout, answer.Body)
		return err
	}
	f, err := renameio.NewPendingFile(c.Out, renameio.WithPermissions(0o644))
	if err != nil {
		return fmt.Errorf("exporting %s: %w", c.Name, err)
	}
	defer func() { _ = f.Cleanup() }() // nothing to do once it is in its place
	n, err := io.Copy(f, answer.Body)
	if err == nil {
		err = f.CloseAtomicallyReplace()
	}
	if err != nil {
		return fmt.Errorf("exporting %s: %w", c.Name, err)
	}
	fmt.Printf("%s: %s; a PEFT adapter in a tar\n", c.Out, size(int(n)))
	return nil
}

type importCmd struct {
	remote
	refitFlags
	Dirs     []string `arg:"" help:"PEFT adapters' directories; with --dry-run also folders of such." type:"path" name:"dir"`
	Name     string   `help:"Adapter to publish it as; its next version where it exists." placeholder:"NAME"`
	Rank     int      `help:"Rows to project onto; default: its own rank where it fits exactly, else all." placeholder:"N" least:"1"`
	DryRun   bool     `help:"Only report what the server's basis would keep of them, what the best basis for them would, and the bytes saved."`
	Rows     int      `help:"With --dry-run: rows of the best basis." default:"64" least:"1"`
	Layers   bool     `help:"With --dry-run: report each layer."`
	BasisOut string   `help:"With --dry-run: directory to write the best basis to, for serve --basis import --basis-from." placeholder:"DIR" type:"path"`
}

// Run imports an adapter, or reports over several.
func (c *importCmd) Run(ctx context.Context, log *slog.Logger) error {
	if c.Refit != "" {
		if len(c.Dirs) != 1 || c.Name == "" && !c.DryRun {
			return errRefitOne
		}
		return c.refit(ctx, log)
	}
	if c.DryRun {
		return c.report(ctx)
	}
	if c.Name == "" || len(c.Dirs) != 1 {
		return errors.New("give one directory and --name, or --dry-run")
	}
	in, err := c.upload(ctx, c.Dirs[0], c.Name, false)
	if err != nil {
		return fmt.Errorf("importing %s: %w", c.Dirs[0], err)
	}
	how := "exactly as it is"
	if !in.Exact {
		how = fmt.Sprintf("projected, %.2f %% kept", 100*in.Kept)
	}
	fmt.Printf("%s@%d is live: rank %d, %s, %s\n", in.Name, in.Version.Version, in.Version.Rank, size(in.Version.Bytes), how)
	if in.Warning != nil {
		fmt.Fprintln(os.Stderr, "warning:", *in.Warning)
	}
	return nil
}

// upload streams a directory's two files to the server.
func (c *importCmd) upload(ctx context.Context, dir, name string, dry bool) (api.AdapterImport, error) {
	var in api.AdapterImport
	q := url.Values{}
	if c.Rank > 0 {
		q.Set("rank", strconv.Itoa(c.Rank))
	}
	if dry {
		q.Set("dry_run", "true")
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	go func() {
		err := pack(w, dir)
		w.CloseWithError(err)
		packed <- err
	}()
	answer, err := c.send(ctx, "POST", adapterPath(name, "import")+"?"+q.Encode(), "application/x-tar", r)
	_ = r.CloseWithError(errUploadOver)
	if packErr := <-packed; packErr != nil && !errors.Is(packErr, errUploadOver) {
		err = packErr
	}
	if err != nil {
		return in, err
	}
	defer answer.Body.Close()
	if err := json.NewDecoder(answer.Body).Decode(&in); err != nil {
		return in, fmt.Errorf("reading the answer: %w", err)
	}
	return in, nil
}

// errUploadOver ends a packing whose upload the server has answered already.
var errUploadOver = errors.New("the upload is over")

// pack writes a tar of the adapter in dir.
func pack(w io.Writer, dir string) error {
	t := tar.NewWriter(w)
	for _, name := range []string{adapters.PEFTConfigFile, adapters.PEFTModelFile} {
		if err := packFile(t, dir, name); err != nil {
			return err
		}
	}
	return t.Close()
}

func packFile(t *tar.Writer, dir, name string) error {
	f, err := os.Open(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", f.Name())
	}
	if err := t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: info.Size(), Mode: 0o644}); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}
