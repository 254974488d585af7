package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"bhive/server/api"
)

// adaptersCmd manages the adapters of a server.
type adaptersCmd struct {
	Ls       lsCmd       `cmd:"" help:"List adapters."`
	Show     showCmd     `cmd:"" help:"Show one adapter and its latest job."`
	Versions versionsCmd `cmd:"" help:"List an adapter's versions."`
	Rollback rollbackCmd `cmd:"" help:"Make an earlier version live again."`
	Rm       rmCmd       `cmd:"" help:"Remove an adapter, or one of its versions."`
	Import   importCmd   `cmd:"" help:"Publish a LoRA that PEFT wrote, or report what would be kept of many."`
	Export   exportCmd   `cmd:"" help:"Write an adapter as an ordinary LoRA for PEFT, in a tar."`
}

func table() *tabwriter.Writer { return tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0) }

func when(seconds int) string { return time.Unix(int64(seconds), 0).Format(time.DateTime) }

func size(n int) string {
	if n < 1<<20 {
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}

// givenVersion is an argument's version, 0 where it was not given. A 0 that was given is none: rm would take it for all of them.
func givenVersion(v *int) (int, error) {
	if v == nil {
		return 0, nil
	}
	if *v < 1 {
		return 0, fmt.Errorf("a version must be a number from 1, is %d", *v)
	}
	return *v, nil
}

type lsCmd struct {
	remote
	Tenant string `help:"For administrators: another tenant's adapters, or with * all tenants'; they are then called tenant/name here and by the other verbs." placeholder:"NAME"`
}

// Run lists the adapters.
func (c *lsCmd) Run(ctx context.Context) error {
	var list api.AdapterList
	path := "/adapters"
	if c.Tenant != "" {
		path += "?tenant=" + url.QueryEscape(c.Tenant)
	}
	if err := c.call(ctx, "GET", path, nil, &list); err != nil {
		return err
	}
	w := table()
	fmt.Fprintln(w, "NAME\tLIVE\tRANK\tSIZE\tCREATED\tJOB")
	for _, a := range list.Data {
		live, rank, bytes := "-", "-", "-"
		if a.Version != nil {
			live, rank, bytes = "@"+strconv.Itoa(a.Version.Version), strconv.Itoa(a.Version.Rank), size(a.Version.Bytes)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", a.Name, live, rank, bytes, when(a.Created), jobLine(a.Job))
	}
	return w.Flush()
}

func jobLine(j *api.Job) string {
	if j == nil {
		return "-"
	}
	line := string(j.State)
	if j.Step != nil && j.Steps != nil && *j.Steps > 0 {
		line += fmt.Sprintf(" %d/%d", *j.Step, *j.Steps)
	}
	if j.Loss != nil {
		line += fmt.Sprintf(" loss %.3f", *j.Loss)
	}
	return line
}

type showCmd struct {
	remote
	Name string `arg:"" help:"Adapter."`
}

// Run shows an adapter.
func (c *showCmd) Run(ctx context.Context) error {
	var a api.Adapter
	if err := c.call(ctx, "GET", adapterPath(c.Name), nil, &a); err != nil {
		return err
	}
	w := table()
	fmt.Fprintf(w, "name\t%s\n", a.Name)
	if a.Base != nil {
		fmt.Fprintf(w, "base\t%s\n", *a.Base)
	}
	if v := a.Version; v != nil {
		fmt.Fprintf(w, "live\t%s@%d\ncreated\t%s\nrank, alpha\t%d, %g\nsize\t%s\nsha256\t%s\n", a.Name, v.Version, when(v.Created), v.Rank, v.Alpha, size(v.Bytes), v.Sha256)
		if v.Parent != nil {
			fmt.Fprintf(w, "parent\t%s@%d\n", a.Name, *v.Parent)
		}
	}
	if j := a.Job; j != nil {
		fmt.Fprintf(w, "job\t%s %s\n", j.Id, jobLine(j))
		if j.Error != nil {
			fmt.Fprintf(w, "error\t%s\n", *j.Error)
		}
	}
	return w.Flush()
}

type versionsCmd struct {
	remote
	Name string `arg:"" help:"Adapter."`
}

// Run lists versions.
func (c *versionsCmd) Run(ctx context.Context) error {
	var list api.VersionList
	if err := c.call(ctx, "GET", adapterPath(c.Name, "versions"), nil, &list); err != nil {
		return err
	}
	w := table()
	fmt.Fprintln(w, "VERSION\tLIVE\tRANK\tALPHA\tSIZE\tCREATED\tSHA256")
	for _, v := range list.Data {
		live := ""
		if v.Live {
			live = "live"
		}
		fmt.Fprintf(w, "%s@%d\t%s\t%d\t%g\t%s\t%s\t%.12s\n", c.Name, v.Version, live, v.Rank, v.Alpha, size(v.Bytes), when(v.Created), v.Sha256)
	}
	return w.Flush()
}

type rollbackCmd struct {
	remote
	Name    string `arg:"" help:"Adapter."`
	Version *int   `arg:"" optional:"" help:"Version to make live; default: the one before."`
}

// Run moves the live pointer.
func (c *rollbackCmd) Run(ctx context.Context) error {
	version, err := givenVersion(c.Version)
	if err != nil {
		return err
	}
	body := map[string]any{}
	if version > 0 {
		body["version"] = version
	}
	var a api.Adapter
	if err := c.call(ctx, "POST", adapterPath(c.Name, "rollback"), body, &a); err != nil {
		return err
	}
	fmt.Printf("%s@%d is live\n", a.Name, *a.LiveVersion)
	return nil
}

type rmCmd struct {
	remote
	Name    string `arg:"" help:"Adapter."`
	Version *int   `arg:"" optional:"" help:"Only this version, which must not be live."`
}

// Run removes.
func (c *rmCmd) Run(ctx context.Context) error {
	version, err := givenVersion(c.Version)
	if err != nil {
		return err
	}
	path := adapterPath(c.Name)
	if version > 0 {
		path = adapterPath(c.Name, "versions", strconv.Itoa(version))
	}
	var deleted api.Deleted
	if err := c.call(ctx, "DELETE", path, nil, &deleted); err != nil {
		return err
	}
	fmt.Println("removed", deleted.Id)
	return nil
}
