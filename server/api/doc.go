// Package api holds the types of openapi.yaml, generated from it. Nothing here is written by hand but this file.
package api

//go:generate go run github.com/oapi-codegen/oapi-codegen/v2/cmd/oapi-codegen@v2.8.2 -generate types -package api -o api.gen.go ../../openapi.yaml
