package folderlock_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"notifyd/internal/embedded/folderlock"
)

func TestSecondHolderIsRefusedUntilTheFirstReleases(t *testing.T) {
	folder := t.TempDir()
	first, err := folderlock.Acquire(folder)
	if err != nil {
		t.Fatal(err)
	}
	_, err = folderlock.Acquire(folder)
	if !errors.Is(err, folderlock.ErrInUse) {
		t.Fatalf("second holder: want ErrInUse, got %v", err)
	}
	if holder := fmt.Sprintf("process %d", os.Getpid()); !strings.Contains(err.Error(), holder) {
		t.Errorf("error does not name the holder: %v", err)
	}
	if err := first.Release(); err != nil {
		t.Fatal(err)
	}
	if err := first.Release(); err != nil {
		t.Errorf("second release: %v", err)
	}
	again, err := folderlock.Acquire(folder)
	if err != nil {
		t.Fatalf("after release: %v", err)
	}
	if err := again.Release(); err != nil {
		t.Error(err)
	}
}

func TestMissingFolderAndLinkedLockFileAreErrors(t *testing.T) {
	if _, err := folderlock.Acquire(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing folder: %v", err)
	}
	folder, target := t.TempDir(), filepath.Join(t.TempDir(), "precious")
	if err := os.Symlink(target, filepath.Join(folder, folderlock.Name)); err != nil {
		t.Fatal(err)
	}
	if _, err := folderlock.Acquire(folder); err == nil {
		t.Error("a linked lock file was followed")
	}
	if _, err := os.Stat(target); !errors.Is(err, os.ErrNotExist) {
		t.Error("the link's target was made")
	}
}
