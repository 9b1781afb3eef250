// What Mutagen itself makes of a failed ssh: reads {"stderr", "status"}, one object a line, and writes {"install", "windows",
// "known"} for each.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"

	"github.com/mutagen-io/mutagen/pkg/agent/transport/ssh"
)

type failure struct {
	Stderr string `json:"stderr"`
	Status int    `json:"status"`
}

type answer struct {
	Install bool `json:"install"`
	Windows bool `json:"windows"`
	Known   bool `json:"known"`
}

func run() error {
	transport, err := ssh.NewTransport("", "host", 0, "")
	if err != nil {
		return err
	}
	input, output := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var asked failure
		if err := input.Decode(&asked); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		// Nothing but a process has a state.
		process := exec.Command("/bin/sh", "-c", fmt.Sprintf("exit %d", asked.Status))
		if err := process.Run(); process.ProcessState == nil {
			return err
		}
		install, windows, err := transport.ClassifyError(process.ProcessState, asked.Stderr)
		if err := output.Encode(answer{install, windows, err == nil}); err != nil {
			return err
		}
	}
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}
