module bhive

go 1.27.0

require (
	github.com/ardanlabs/jinja v1.12.0
	github.com/dlclark/regexp2 v1.12.0
	github.com/google/go-cmp v0.7.0
	golang.org/x/text v0.44.0
	pgregory.net/rapid v1.3.0
)
