package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"bhive/adapters"
	"bhive/server/api"
)

// candidate is an adapter that a dry run reports on.
type candidate struct {
	dir        string
	peft       *adapters.PEFT
	here, best []adapters.ModuleKept // on the server's rows, on the best
	exact      bool
	bytes      int64 // of its B's here, in bf16
}

// kept is the share that all of the modules keep together.
func kept(ms []adapters.ModuleKept) float64 {
	var sum, total float64
	for _, m := range ms {
		sum, total = sum+m.Kept*m.Norm, total+m.Norm
	}
	if total == 0 {
		return 1
	}
	return sum / total
}

// report says of a folder of adapters what would be kept, by which basis, and what is saved.
func (c *importCmd) report(ctx context.Context) error {
	var basis api.Basis
	if err := c.call(ctx, "GET", "/basis", nil, &basis); err != nil {
		return err
	}
	if basis.Geometry == nil {
		return errors.New("the server does not tell its base's sizes: it is of an earlier version")
	}
	g := adapters.Geometry{Layers: basis.Geometry.Layers, Hidden: basis.Geometry.Hidden, QDim: basis.Geometry.QDim, KVDim: basis.Geometry.KvDim, FeedForward: basis.Geometry.FeedForward}
	dirs, err := adapterDirs(c.Dirs)
	if err != nil {
		return err
	}
	var all []*candidate
	var pefts []*adapters.PEFT
	for _, dir := range dirs {
		p, err := adapters.ReadPEFT(os.DirFS(dir), g)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s is left out: %v\n", dir, err)
			continue
		}
		in, err := c.upload(ctx, dir, "dry-run", true)
		if err != nil {
			return fmt.Errorf("asking the server about %s: %w", dir, err)
		}
		a := &candidate{dir: dir, peft: p, exact: in.Exact}
		rank := basis.Rows
		if c.Rank > 0 {
			rank = c.Rank
		} else if in.Exact {
			rank = p.Rank
		}
		for _, m := range in.Modules {
			proj, _ := adapters.ParseProj(string(m.Module))
			a.here = append(a.here, adapters.ModuleKept{Layer: m.Layer, Proj: proj, Kept: m.Kept, Norm: m.Norm})
			a.bytes += 2 * int64(rank) * int64(g.Out(proj))
		}
		all, pefts = append(all, a), append(pefts, p)
	}
	if len(all) == 0 {
		return errors.New("none of the adapters can be read")
	}
	best, err := adapters.BestBasis(ctx, pefts, c.Rows, basis.BaseSha256)
	if err != nil {
		return err
	}
	for _, a := range all {
		_, projection, err := best.Project(a.peft, c.Rows)
		if err != nil {
			return fmt.Errorf("%s: %w", a.dir, err)
		}
		a.best = projection.Modules
	}
	if err := c.print(all, basis, g); err != nil {
		return err
	}
	if c.BasisOut == "" {
		return nil
	}
	x, err := best.Export(adapters.NewWeights(g, c.Rows, float64(c.Rows)), "")
	if err != nil {
		return err
	}
	if err := x.WriteDir(c.BasisOut); err != nil {
		return err
	}
	fmt.Printf("\nThe best basis is in %[1]s, for an empty registry: bhive serve --basis import --basis-from %[1]s\n", c.BasisOut)
	return nil
}

func (c *importCmd) print(all []*candidate, basis api.Basis, g adapters.Geometry) error {
	w := table()
	fmt.Fprintf(w, "ADAPTER\tRANK\tSIZE\tKEPT HERE (%d rows, %s)\tKEPT BY THE BEST (%d rows)\n", basis.Rows, basis.Method, c.Rows)
	var files, bytes int64
	for _, a := range all {
		here := fmt.Sprintf("%.2f %%", 100*kept(a.here))
		if a.exact {
			here = "all: its A's are the basis'"
		}
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%.2f %%\n", a.dir, a.peft.Rank, size(int(a.peft.Bytes)), here, 100*kept(a.best))
		files, bytes = files+a.peft.Bytes, bytes+a.bytes
	}
	fmt.Fprintln(w, "\nMODULE\t\t\tKEPT HERE\tKEPT BY THE BEST")
	for layer := range g.Layers {
		if layer > 0 && !c.Layers {
			break
		}
		for p := adapters.Q; p < adapters.NumProjs; p++ {
			of := func(m adapters.ModuleKept) bool { return m.Proj == p && (!c.Layers || m.Layer == layer) }
			name := p.String()
			if c.Layers {
				name = fmt.Sprintf("layers.%d.%v", layer, p)
			}
			here, ok := across(all, of, func(a *candidate) []adapters.ModuleKept { return a.here })
			best, _ := across(all, of, func(a *candidate) []adapters.ModuleKept { return a.best })
			if ok {
				fmt.Fprintf(w, "%s\t\t\t%.2f %%\t%.2f %%\n", name, 100*here, 100*best)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	in := 0
	for s := adapters.AttnIn; s < adapters.NumSites; s++ {
		in += g.In(s)
	}
	fmt.Printf("\n%d adapters: %s of files as they are, %s of B's here: %s saved (beside the shared A's, %s for any number of adapters)\n",
		len(all), bytesOf(files), bytesOf(bytes), bytesOf(files-bytes), bytesOf(2*int64(basis.Rows)*int64(in)*int64(g.Layers)))
	return nil
}

// across is the mean over the adapters of what the chosen modules keep; false where none has such a module.
func across(all []*candidate, of func(adapters.ModuleKept) bool, modules func(*candidate) []adapters.ModuleKept) (float64, bool) {
	sum, n := 0.0, 0
	for _, a := range all {
		var chosen []adapters.ModuleKept
		for _, m := range modules(a) {
			if of(m) {
				chosen = append(chosen, m)
			}
		}
		if len(chosen) > 0 {
			sum, n = sum+kept(chosen), n+1
		}
	}
	return sum / float64(max(n, 1)), n > 0
}

func bytesOf(n int64) string {
	if n < 0 {
		return "−" + size(int(-n))
	}
	return size(int(n))
}

// adapterDirs are the directories that hold an adapter: the given ones, or those within them.
func adapterDirs(given []string) ([]string, error) {
	has := func(dir string) bool {
		_, err := os.Stat(filepath.Join(dir, adapters.PEFTConfigFile))
		return err == nil
	}
	var out []string
	for _, dir := range given {
		if has(dir) {
			out = append(out, dir)
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, fmt.Errorf("looking for adapters: %w", err)
		}
		before := len(out)
		for _, e := range entries {
			if sub := filepath.Join(dir, e.Name()); has(sub) {
				out = append(out, sub)
			}
		}
		if len(out) == before {
			return nil, fmt.Errorf("%s holds no PEFT adapter: neither it nor a directory in it has an %s", dir, adapters.PEFTConfigFile)
		}
	}
	return out, nil
}
