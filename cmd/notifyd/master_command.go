package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"time"
)

const (
	masterKeyWait = 30 * time.Second
	mostMasterKey = 1 << 20
)

// runMasterKeyCommand asks a program for the master key. What it prints is in no log and no error, on either stream: an error
// of such programs may quote what they know.
func runMasterKeyCommand(ctx context.Context, argv []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, masterKeyWait)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // the operator names the program
	cmd.WaitDelay = time.Second
	var out bounded
	cmd.Stdout = &out
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ledger.master_key_command: %s: did not end within %s", argv[0], masterKeyWait)
	case out.over:
		return nil, fmt.Errorf("ledger.master_key_command: %s: printed more than %d bytes", argv[0], mostMasterKey)
	case err != nil:
		return nil, fmt.Errorf("ledger.master_key_command: %s: %w", argv[0], err)
	case len(bytes.TrimSpace(out.content.Bytes())) == 0:
		return nil, fmt.Errorf("ledger.master_key_command: %s: printed nothing", argv[0])
	}
	return out.content.Bytes(), nil
}

// bounded takes so much, and no more.
type bounded struct {
	content bytes.Buffer // not embedded: its ReadFrom would take everything
	over    bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if b.content.Len()+len(p) > mostMasterKey {
		b.over = true
		return 0, errors.New("too much")
	}
	return b.content.Write(p)
}
