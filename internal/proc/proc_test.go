package proc

import (
	"os"
	"os/exec"
	"testing"
	"time"
)

// Less than a clock's tick (10 ms) of work is seen, and what a child did is its family's.
func TestCPU(t *testing.T) {
	work := func(until time.Duration) {
		for began := CPU(os.Getpid()); CPU(os.Getpid())-began < until; {
		}
	}
	before, all := CPU(os.Getpid()), FamilyCPU(os.Getpid())
	work(time.Millisecond)
	if did := CPU(os.Getpid()) - before; did < time.Millisecond || did > time.Second {
		t.Errorf("a millisecond of work counts %v", did)
	}
	child := exec.Command("sh", "-c", "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; read end")
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	for CPU(child.Process.Pid) < 5*time.Millisecond {
		time.Sleep(time.Millisecond)
	}
	if did := FamilyCPU(os.Getpid()) - all; did < 6*time.Millisecond {
		t.Errorf("a family of which one did a millisecond and the other five counts %v", did)
	}
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait() // read meets the end of its input
}
