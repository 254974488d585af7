package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"

	"bhive/adapters"
	"bhive/server/api"
	"bhive/server/keys"
)

// keysCmd manages the API keys of a registry.
type keysCmd struct {
	Create createKeyCmd `cmd:"" help:"Make a key and print its secret, this once. The first must be an administrator's."`
	Ls     lsKeysCmd    `cmd:"" help:"List keys."`
	Revoke revokeKeyCmd `cmd:"" aliases:"rm" help:"Revoke a key."`
}

// keyHolder are the flags that say whose keys.
type keyHolder struct {
	remote
	Registry string `help:"Registry whose keys they are, to work on it without a server: a directory or redis://…, as of bhive serve. Where a server holds the directory, that server is asked." placeholder:"URL"`
	Data     string `help:"The same, for a directory." placeholder:"DIR"`
}

// ring opens the registry and calls f with its keys. Where a server has it, or none was named, ok is false: the server is to be asked.
// Only to make a key a new registry is made too.
func (h keyHolder) ring(ctx context.Context, log *slog.Logger, create bool, f func(*keys.Ring) error) (ok bool, err error) {
	name := cmp.Or(h.Registry, h.Data)
	if name == "" {
		return false, nil
	}
	if !create {
		if err := registryExists(name); err != nil {
			return true, err
		}
	}
	store, err := openStore(ctx, name, log)
	if errors.Is(err, adapters.ErrStoreLocked) {
		return false, nil
	}
	if err != nil {
		return true, err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return true, f(keys.New(store))
}

type createKeyCmd struct {
	keyHolder
	Tenant string `help:"Tenant whose adapters, files and jobs it reaches." required:""`
	Role   string `help:"${enum}." enum:"tenant,admin" default:"tenant"`
	Name   string `help:"A note for the list."`
}

// Run makes a key.
func (c *createKeyCmd) Run(ctx context.Context, log *slog.Logger) error {
	var made api.APIKey
	var secret string
	ok, err := c.ring(ctx, log, true, func(r *keys.Ring) (err error) {
		_, secret, err = r.Create(ctx, c.Tenant, keys.Role(c.Role), c.Name)
		return err
	})
	if !ok && err == nil {
		err = c.call(ctx, "POST", "/admin/keys", map[string]string{"tenant": c.Tenant, "role": c.Role, "name": c.Name}, &made)
		if made.Key != nil {
			secret = *made.Key
		}
	}
	if err != nil {
		return err
	}
	fmt.Println(secret)
	return nil
}

type lsKeysCmd struct{ keyHolder }

// Run lists the keys.
func (c *lsKeysCmd) Run(ctx context.Context, log *slog.Logger) error {
	var list api.APIKeyList
	ok, err := c.ring(ctx, log, false, func(r *keys.Ring) error {
		all, err := r.List(ctx)
		for _, k := range all {
			list.Data = append(list.Data, api.APIKey{Id: k.ID, Tenant: k.Tenant, Role: api.APIKeyRole(k.Role), Created: int(k.Created.Unix()), Name: &k.Name})
		}
		return err
	})
	if !ok && err == nil {
		err = c.call(ctx, "GET", "/admin/keys", nil, &list)
	}
	if err != nil {
		return err
	}
	w := table()
	fmt.Fprintln(w, "ID\tTENANT\tROLE\tCREATED\tNAME")
	for _, k := range list.Data {
		name := ""
		if k.Name != nil {
			name = *k.Name
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", k.Id, k.Tenant, k.Role, when(k.Created), name)
	}
	return w.Flush()
}

type revokeKeyCmd struct {
	keyHolder
	ID string `arg:"" help:"The key's id (see bhive keys ls)."`
}

// Run revokes a key.
func (c *revokeKeyCmd) Run(ctx context.Context, log *slog.Logger) error {
	ok, err := c.ring(ctx, log, false, func(r *keys.Ring) error { return r.Revoke(ctx, c.ID, false) })
	if !ok && err == nil {
		err = c.call(ctx, "DELETE", "/admin/keys/"+url.PathEscape(c.ID), nil, nil)
	}
	return err
}
