// Package rig is what measurements of the whole engine share: the engine, its merchants, the load and the bare client in
// processes of their own, and what they saw.
package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"notifyd/internal/proc"
)

// Process is a child or an engine, with its standard input and output.
type Process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// stopBound is more than an engine needs to finish what it has in hand.
const stopBound = 60 * time.Second

// program is what a process runs.
type program struct {
	path  string
	args  []string
	env   []string // added to this process' own
	quiet bool     // what it says on standard error is not shown
}

// spawn starts a process that lives until ctx ends at most.
func spawn(ctx context.Context, what program) (*Process, error) {
	p := &Process{cmd: exec.CommandContext(ctx, what.path, what.args...)}
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = stopBound
	if !what.quiet {
		p.cmd.Stderr = os.Stderr
	}
	p.cmd.Env = append(os.Environ(), what.env...)
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReaderSize(out, 1<<16)
	return p, p.cmd.Start()
}

// PID is the process' number.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// CPU is the process' CPU time so far.
func (p *Process) CPU() time.Duration { return proc.CPU(p.PID()) }

// Wait waits for the process' end, which the end of its context asks for.
func (p *Process) Wait() {
	if p != nil {
		_ = p.cmd.Wait() // ended by our own signal
	}
}

// Line reads one line.
func (p *Process) Line() (string, error) {
	s, err := p.out.ReadString('\n')
	return strings.TrimSpace(s), err
}

// Ask sends an order to a child, and waits for its answer: a line of JSON each.
func (p *Process) Ask(order, answer any) error {
	if err := json.NewEncoder(p.in).Encode(order); err != nil {
		return err
	}
	return p.read(answer)
}

func (p *Process) read(answer any) error {
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read a child's answer: %w", err)
	}
	return json.Unmarshal(line, answer)
}

// child starts one of this program's own roles, in a process of its own.
func child(ctx context.Context, role string, cfg any) (*Process, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		return nil, err
	}
	return spawn(ctx, program{path: self, args: []string{"child", role, string(text)}, env: []string{childVariable + "=1"}})
}

// childVariable marks the environment of children, so that a test's binary can play them too.
const childVariable = "NOTIFYD_BENCH_CHILD"

// Child plays a role if this process was started to do so. Programs that use the rig call it first.
func Child() {
	if os.Getenv(childVariable) == "" || len(os.Args) != 4 {
		return
	}
	if err := play(os.Args[2], []byte(os.Args[3])); err != nil {
		fmt.Fprintln(os.Stderr, os.Args[2]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func play(role string, cfg []byte) error {
	switch role {
	case "sink":
		return configured(cfg, runSink)
	case "floor":
		return configured(cfg, runFloor)
	case "load":
		return configured(cfg, runLoad)
	}
	return fmt.Errorf("%q: no such role", role)
}

func configured[C any](text []byte, run func(C) error) error {
	var cfg C
	if err := json.Unmarshal(text, &cfg); err != nil {
		return err
	}
	return run(cfg)
}

// serve answers orders on standard input until it ends.
func serve[O, A any](do func(O) (A, error)) error {
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var order O
		if err := orders.Decode(&order); errors.Is(err, io.EOF) {
			return nil // the run is over
		} else if err != nil {
			return err
		}
		answer, err := do(order)
		if err != nil {
			return err
		}
		if err := answers.Encode(answer); err != nil {
			return err
		}
	}
}
