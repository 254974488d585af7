package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Checkpoint is an open checkpoint. It is safe for concurrent use, but for Close.
type Checkpoint struct {
	name       string
	config     Config
	generation Generation
	tensors    map[string]Tensor
	files      fs.FS     // of the Hugging Face form, else nil
	meta       *GGUFMeta // of a GGUF, else nil
	release    []func() error
	once       sync.Once
	closeErr   error
}

// Open opens a Hugging Face directory or a .gguf file and checks that the model is complete. Errors name the file and
// the field or tensor; they wrap ErrUnsupported, ErrFormat or that of the file system.
func Open(path string) (*Checkpoint, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("opening checkpoint: %w", err)
	}
	c := &Checkpoint{name: path}
	if st.IsDir() {
		err = c.openDir(os.DirFS(path), func(name string) ([]byte, error) {
			data, release, err := mapFile(filepath.Join(path, name))
			if err == nil {
				c.release = append(c.release, release)
			}
			return data, err
		})
	} else {
		var data []byte
		var release func() error
		if data, release, err = mapFile(path); err == nil {
			c.release = append(c.release, release)
			err = c.openGGUF(data)
		}
	}
	return c.opened(err)
}

// OpenFS opens a Hugging Face directory at the root of fsys; its weights are read into memory.
func OpenFS(fsys fs.FS) (*Checkpoint, error) {
	c := &Checkpoint{name: "embedded"}
	return c.opened(c.openDir(fsys, func(name string) ([]byte, error) { return fs.ReadFile(fsys, name) }))
}

// OpenBytes opens a GGUF that is in memory. The bytes must stay unchanged.
func OpenBytes(gguf []byte) (*Checkpoint, error) {
	c := &Checkpoint{name: "bytes"}
	return c.opened(c.openGGUF(gguf))
}

// opened checks the tensors of a checkpoint whose files were read, or closes it.
func (c *Checkpoint) opened(err error) (*Checkpoint, error) {
	if err == nil {
		err = c.checkTensors()
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("checkpoint %s: %w", c.name, err)
	}
	return c, nil
}

// checkTensors holds the tensors against the config.
func (c *Checkpoint) checkTensors() error {
	var err error
	c.config.tensors(func(name string, want ...int) {
		if err != nil {
			return
		}
		t, ok := c.tensors[name]
		switch {
		case !ok:
			err = fmt.Errorf("%w: tensor %s is missing (want %v)", ErrFormat, name, want)
		case !slices.Equal(t.Shape, want):
			err = fmt.Errorf("%w: tensor %s is %v, the config wants %v", ErrFormat, name, t.Shape, want)
		default:
			if n, _ := t.DType.Block(); n == 0 {
				err = fmt.Errorf("%w: tensor %s is stored as %s", ErrUnsupported, name, t.DType)
			}
		}
	})
	return err
}

// Close releases the files; tensors and their bytes are invalid from then on. It may be called more than once.
func (c *Checkpoint) Close() error {
	c.once.Do(func() {
		c.tensors = nil
		for _, release := range c.release {
			c.closeErr = errors.Join(c.closeErr, release())
		}
	})
	return c.closeErr
}

// Config is the architecture.
func (c *Checkpoint) Config() Config { return c.config }

// Generation is the checkpoint's own sampling defaults.
func (c *Checkpoint) Generation() Generation { return c.generation }

// Names lists all tensors in the files in order of their names, those that the model does not use too.
func (c *Checkpoint) Names() []string {
	names := make([]string, 0, len(c.tensors))
	for n := range c.tensors {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// Unused lists the tensors that the model does not use.
func (c *Checkpoint) Unused() []string {
	used := map[string]bool{}
	c.config.tensors(func(name string, _ ...int) { used[name] = true })
	return slices.DeleteFunc(c.Names(), func(n string) bool { return used[n] })
}

// Tensor gives the tensor of that Hugging Face name; ErrNoTensor if there is none, ErrUnsupported if it is stored in a
// format or rank that cannot be read.
func (c *Checkpoint) Tensor(name string) (Tensor, error) {
	t, ok := c.tensors[name]
	if !ok {
		return Tensor{}, fmt.Errorf("%w: %s in %s", ErrNoTensor, name, c.name)
	}
	if n, _ := t.DType.Block(); n == 0 || len(t.Shape) < 1 || len(t.Shape) > 2 {
		return Tensor{}, fmt.Errorf("%w: tensor %s of %s is %s%v", ErrUnsupported, name, c.name, t.DType, t.Shape)
	}
	return t, nil
}
