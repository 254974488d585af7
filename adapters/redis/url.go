package redis

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Address says which Redis holds a registry, and under which prefix.
type Address struct {
	options redis.UniversalOptions
	prefix  string
	shown   string
}

// String is the address without its passwords.
func (a Address) String() string { return a.shown }

// IsURL says whether a registry's name is a URL for this package and not a directory.
func IsURL(name string) bool { return strings.Contains(name, "://") }

const (
	maxPrefix = 64
	letters   = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
)

// ParseURL reads redis://[user[:password]@]host[:port][/db][?option=value&…]; rediss:// is the same over TLS. Options:
//
//	addr=HOST:PORT       another node or sentinel; may be repeated
//	master=NAME          the hosts are sentinels, which know the master by this name
//	sentinel_user, sentinel_password   for the sentinels
//	cluster=true         the hosts are nodes of a Cluster; so it is too where there are several and no master
//	prefix=NAME          of all keys; default: bhive
//	ca=FILE              PEM certificates that the server's must be signed by; default: the system's
//	cert=FILE&key=FILE   the client's own certificate
//	insecure=true        takes any certificate of the server
//
// Its errors name the part that is wrong and contain no password.
func ParseURL(raw string) (Address, error) {
	u, err := url.Parse(raw)
	if err != nil {
		var inner *url.Error
		if errors.As(err, &inner) {
			err = inner.Err // without the URL
		}
		if strings.Contains(raw, "@") {
			err = errors.New("it is not well formed")
		}
		return Address{}, fmt.Errorf("registry URL: %w", err)
	}
	a, err := parseURL(u)
	if err != nil {
		return Address{}, fmt.Errorf("registry URL: %w", err)
	}
	return a, nil
}

func parseURL(u *url.URL) (Address, error) {
	a := Address{prefix: "bhive"}
	o := &a.options
	if u.Scheme != "redis" && u.Scheme != "rediss" {
		return a, fmt.Errorf("the scheme is %q, not redis or rediss", u.Scheme)
	}
	if u.Opaque != "" || u.Fragment != "" {
		return a, errors.New("it is not of the form redis://host:port/db?option=value")
	}
	o.Username = u.User.Username()
	o.Password, _ = u.User.Password()
	if db := strings.TrimPrefix(u.Path, "/"); db != "" {
		n, err := strconv.Atoi(db)
		if err != nil || n < 0 {
			return a, fmt.Errorf("the database is %q, not a number", db)
		}
		o.DB = n
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return a, errors.New("its options are not well formed")
	}
	if o.MasterName = query.Get("master"); query.Has("master") && o.MasterName == "" {
		return a, errors.New("option master is empty")
	}
	port := "6379"
	if o.MasterName != "" {
		port = "26379"
	}
	for _, host := range append([]string{u.Host}, query["addr"]...) {
		addr, err := hostPort(host, port)
		if err != nil {
			return a, err
		}
		o.Addrs = append(o.Addrs, addr)
	}
	if err := a.readOptions(u.Scheme == "rediss", query); err != nil {
		return a, err
	}
	if o.IsClusterMode && (o.MasterName != "" || o.DB != 0) {
		return a, errors.New("a Cluster has neither a master's name nor a database number")
	}
	a.shown = u.Scheme + "://" + strings.Join(o.Addrs, ",")
	if o.DB != 0 {
		a.shown += "/" + strconv.Itoa(o.DB)
	}
	return a, nil
}

func hostPort(s, port string) (string, error) {
	u := url.URL{Host: s}
	host, given := u.Hostname(), u.Port()
	if given != "" {
		port = given
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 1 || n > 65535 || host == "" || strings.Trim(host, letters+".-_:%") != "" || strings.Contains(host, ":") != strings.HasPrefix(s, "[") {
		return "", fmt.Errorf("the address %q is not host:port", s)
	}
	return net.JoinHostPort(host, port), nil
}

func (a *Address) readOptions(secure bool, query url.Values) error {
	o := &a.options
	var ca, cert, key string
	insecure := false
	for name, values := range query {
		if len(values) > 1 && name != "addr" {
			return fmt.Errorf("option %q is given %d times", name, len(values))
		}
		value := values[0]
		var err error
		switch name {
		case "addr", "master":
		case "sentinel_user":
			o.SentinelUsername = value
		case "sentinel_password":
			o.SentinelPassword = value
		case "cluster":
			o.IsClusterMode, err = strconv.ParseBool(value)
		case "prefix":
			if a.prefix = value; value == "" || len(value) > maxPrefix || strings.Trim(value, letters+"._-:") != "" {
				return fmt.Errorf("option prefix is %q: only letters, digits and . _ - : are allowed, at most %d", value, maxPrefix)
			}
		case "ca":
			ca = value
		case "cert":
			cert = value
		case "key":
			key = value
		case "insecure":
			insecure, err = strconv.ParseBool(value)
		default:
			return fmt.Errorf("option %q is unknown", name)
		}
		if err != nil {
			return fmt.Errorf("option %s is %q, not true or false", name, value)
		}
	}
	if len(o.Addrs) > 1 && o.MasterName == "" {
		o.IsClusterMode = true
	}
	if !secure {
		if insecure || ca+cert+key != "" {
			return errors.New("options ca, cert, key and insecure need rediss://")
		}
		return nil
	}
	o.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}
	if ca != "" {
		pem, err := os.ReadFile(ca)
		if err != nil {
			return fmt.Errorf("option ca: %w", err)
		}
		o.TLSConfig.RootCAs = x509.NewCertPool()
		if !o.TLSConfig.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("option ca: %s has no PEM certificate", ca)
		}
	}
	if cert != "" || key != "" {
		pair, err := tls.LoadX509KeyPair(cert, key)
		if err != nil {
			return fmt.Errorf("options cert and key: %w", err)
		}
		o.TLSConfig.Certificates = []tls.Certificate{pair}
	}
	return nil
}
