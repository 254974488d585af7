package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"bhive/adapters"
	"bhive/adapters/redis"
	"bhive/finetune"
)

// registryCmd works on registries while no server needs them.
type registryCmd struct {
	Copy registryCopyCmd `cmd:"" help:"Copy all adapters, bases, files, values and finished jobs of one registry to another."`
}

type registryCopyCmd struct {
	From string `arg:"" help:"Registry to read: a directory, which no server may have open, or redis://…"`
	To   string `arg:"" help:"Registry to write: the same. What it has already stays as it is, so a copy that broke off can be run again."`
}

// Run copies.
func (c *registryCopyCmd) Run(ctx context.Context, log *slog.Logger) (err error) {
	if err := registryExists(c.From); err != nil {
		return err
	}
	from, err := openStore(ctx, c.From, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, from.Close()) }()
	to, err := openStore(ctx, c.To, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	report, err := copyRegistry(ctx, from, to)
	fmt.Println(report)
	return err
}

// registryExists fails for a directory that is not there, which openStore would make.
func registryExists(name string) error {
	if redis.IsURL(name) {
		return nil
	}
	if _, err := os.Stat(name); err != nil {
		return fmt.Errorf("the registry: %w", err)
	}
	return nil
}

// copyReport counts what copyRegistry did.
type copyReport struct {
	copied, kept, unfinished int // records
	bytes                    int64
}

func (r copyReport) String() string {
	return fmt.Sprintf("%d records copied with %s of content, %d were there already, %d unfinished jobs were left out",
		r.copied, size(int(r.bytes)), r.kept, r.unfinished)
}

// copyRegistry copies every record, each with its blobs, which are verified on the way. A record that is in the way in to stays.
func copyRegistry(ctx context.Context, from, to adapters.Store) (copyReport, error) {
	var report copyReport
	err := from.Export(ctx, func(r adapters.Record) error {
		if r.Job != nil && !finetune.State(r.Job.Job.State).Final() {
			report.unfinished++
			return nil
		}
		// Blobs first: they need not be sent where the record is there already.
		err := to.Import(ctx, r)
		if errors.Is(err, adapters.ErrNotFound) {
			tenant, shas := r.Blobs()
			for _, sha := range shas {
				n, err := copyBlob(ctx, from, to, tenant, sha)
				if err != nil {
					return err
				}
				report.bytes += n
			}
			err = to.Import(ctx, r)
		}
		if errors.Is(err, adapters.ErrExists) {
			report.kept++
			return nil
		}
		if err == nil {
			report.copied++
		}
		return err
	})
	return report, err
}

func copyBlob(ctx context.Context, from, to adapters.Store, tenant, sha string) (int64, error) {
	b, err := from.OpenBlob(ctx, tenant, sha)
	if err != nil {
		return 0, err
	}
	defer b.Close()
	info, err := to.PutBlob(ctx, tenant, io.NewSectionReader(b, 0, b.Size()))
	if err == nil && info.SHA256 != sha {
		err = fmt.Errorf("blob %s: %w: it has SHA-256 %s", sha, adapters.ErrCorrupt, info.SHA256)
	}
	return info.Bytes, err
}
