package bubble_test

import (
	"bytes"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"notifyd/internal/bubble"
)

// Timers that are due when they are set, by many goroutines at once: without the one processor, the race detector
// ends this process.
func TestTimersThatAreDueWhenTheyAreSet(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	for range 20 {
		bubble.Test(t, func(*testing.T) {
			var setters sync.WaitGroup
			for range 50 {
				setters.Go(func() {
					for range 200 {
						<-time.NewTimer(0).C
					}
				})
			}
			setters.Wait()
		})
	}
	if after := runtime.GOMAXPROCS(0); after != before {
		t.Errorf("%d processors after the bubbles, %d before", after, before)
	}
}

// A bubble that is started elsewhere would end its package's tests once in a hundred runs, and nobody would know why.
func TestNoBubbleIsStartedElsewhere(t *testing.T) {
	root := os.DirFS("../..")
	err := fs.WalkDir(root, ".", func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && (strings.HasPrefix(entry.Name(), ".") && path != "." || entry.Name() == "node_modules"):
			return fs.SkipDir
		case !strings.HasSuffix(path, "_test.go") || strings.HasPrefix(path, "internal/bubble/"):
			return nil
		}
		text, err := fs.ReadFile(root, path)
		if bytes.Contains(text, []byte("synctest.Test(")) {
			t.Errorf("%s: starts a bubble with synctest.Test; the rule: with bubble.Test", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
