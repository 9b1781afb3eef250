//go:build tools

// Package tools names the programs of Mutagen that the tests run, so that
// `go mod tidy` keeps what they need; build.sh builds them by package path.
package tools

import (
	_ "github.com/mutagen-io/mutagen/cmd/mutagen"
	_ "github.com/mutagen-io/mutagen/cmd/mutagen-agent"
)
