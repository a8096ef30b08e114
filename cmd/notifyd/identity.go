package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// nodeIdentity names the data folder, and with it the node, for as long as the folder lives: a node that comes back after a
// crash is known to be the same, whatever it is called.
func nodeIdentity(dataDir string) (string, error) {
	path := filepath.Join(dataDir, "node_id")
	text, err := os.ReadFile(path) //nolint:gosec // a file of our own
	if id := strings.TrimSpace(string(text)); err == nil && id != "" {
		return id, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the node's identity: %w", err)
	}
	id := rand.Text()
	if err := os.WriteFile(path, []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("keep the node's identity: %w", err)
	}
	return id, nil
}
