package sign

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"notifyd/internal/bubble"
)

// gate is a private key that signs when it is let: it says which message it has, and waits.
type gate struct {
	ed25519.PrivateKey
	entered chan string
	pass    chan struct{}
}

func (g gate) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	g.entered <- string(message)
	<-g.pass
	return []byte("signed " + string(message)), nil
}

func newGate(t *testing.T) (gate, *Signer) {
	t.Helper()
	g := gate{PrivateKey: edwards(), entered: make(chan string), pass: make(chan struct{})}
	return g, newSigner(t, Ed25519, privateKey(t, g), Options{})
}

// A thousand signatures that wait for one merchant cost another a turn, not a thousand.
func TestMerchantsTakeTurns(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		pool := NewPool(1)
		gate, signer := newGate(t)
		var done sync.WaitGroup
		ask := func(owner, message string) {
			done.Go(func() {
				if got, err := pool.Sign(t.Context(), owner, signer, []byte(message)); err != nil || string(got) != "signed "+message {
					t.Errorf("%s: %q, %v", message, got, err)
				}
			})
			synctest.Wait() // so that they come in this order
		}
		ask("a", "a")
		order := []string{<-gate.entered}
		for range 1000 {
			ask("a", "a")
		}
		for _, owner := range []string{"b", "b", "c"} {
			ask(owner, owner)
		}
		if diff := cmp.Diff(PoolStats{Places: 1, Busy: 1, Waiting: 1003}, pool.Stats()); diff != "" {
			t.Error(diff)
		}
		for range 1003 {
			gate.pass <- struct{}{}
			order = append(order, <-gate.entered)
		}
		gate.pass <- struct{}{}
		done.Wait()
		if diff := cmp.Diff([]string{"a", "a", "b", "c", "a", "b", "a", "a"}, order[:8]); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(PoolStats{Places: 1}, pool.Stats()); diff != "" {
			t.Error(diff)
		}
	})
}

func TestAMerchantsOwnComeInOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		pool := NewPool(1)
		gate, signer := newGate(t)
		var done sync.WaitGroup
		for _, message := range []string{"1", "2", "3", "4"} {
			done.Go(func() { _, _ = pool.Sign(t.Context(), "a", signer, []byte(message)) })
			synctest.Wait()
			if message == "1" {
				<-gate.entered
			}
		}
		for _, want := range []string{"2", "3", "4"} {
			gate.pass <- struct{}{}
			if got := <-gate.entered; got != want {
				t.Errorf("%s comes before %s", got, want)
			}
		}
		gate.pass <- struct{}{}
		done.Wait()
	})
}

func TestPoolSignsSoManyAtOnce(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		pool := NewPool(3)
		gate, signer := newGate(t)
		var done sync.WaitGroup
		for range 10 {
			done.Go(func() { _, _ = pool.Sign(t.Context(), "a", signer, []byte("m")) })
		}
		for range 3 {
			<-gate.entered
		}
		synctest.Wait()
		select {
		case <-gate.entered:
			t.Error("a fourth signs")
		default:
		}
		// A cheap one does not wait for them.
		cheap := newSigner(t, HMACSHA256, secretKey(t, "0123456789abcdef"), Options{})
		if _, err := pool.Sign(t.Context(), "b", cheap, []byte("m")); err != nil {
			t.Error(err)
		}
		for range 7 {
			gate.pass <- struct{}{}
			<-gate.entered
		}
		for range 3 {
			gate.pass <- struct{}{}
		}
		done.Wait()
	})
}

func TestWhoGivesUpLeavesTheLine(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		pool := NewPool(1)
		gate, signer := newGate(t)
		var done sync.WaitGroup
		done.Go(func() { _, _ = pool.Sign(t.Context(), "a", signer, []byte("first")) })
		<-gate.entered
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		for _, owner := range []string{"a", "a", "b"} {
			done.Go(func() {
				if got, err := pool.Sign(ctx, owner, signer, []byte("late")); !errors.Is(err, context.DeadlineExceeded) || got != nil {
					t.Errorf("%q, %v", got, err)
				}
			})
		}
		done.Go(func() { _, _ = pool.Sign(t.Context(), "b", signer, []byte("patient")) })
		synctest.Wait()
		if got := pool.Stats().Waiting; got != 4 {
			t.Errorf("%d wait, want 4", got)
		}
		time.Sleep(2 * time.Second) // the bubble's clock
		synctest.Wait()
		if got := pool.Stats().Waiting; got != 1 {
			t.Errorf("%d wait after three gave up, want 1", got)
		}
		gate.pass <- struct{}{}
		if got := <-gate.entered; got != "patient" {
			t.Errorf("%s is next, want patient", got)
		}
		gate.pass <- struct{}{}
		done.Wait()
		if _, err := pool.Sign(ctx, "a", signer, []byte("m")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("it signs when the time is over: %v", err)
		}
		if diff := cmp.Diff(PoolStats{Places: 1}, pool.Stats()); diff != "" {
			t.Error(diff)
		}
	})
}

// Whose turn comes just when it gives up passes the place on.
func TestTurnThatComesTooLateIsPassedOn(t *testing.T) {
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for gaveUp := 0; gaveUp < 10; { // with both at hand, select takes either
		pool := NewPool(1)
		pool.take("a")
		turn, _ := pool.take("b")
		pool.leave()
		if err := pool.await(ended, "b", turn); err == nil {
			pool.leave()
		} else {
			gaveUp++
		}
		if diff := cmp.Diff(PoolStats{Places: 1}, pool.Stats()); diff != "" {
			t.Fatal(diff)
		}
	}
}

// bomb is a private key whose driver panics.
type bomb struct{ ed25519.PrivateKey }

func (bomb) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) { panic("driver") }

func TestPanicGivesThePlaceBack(t *testing.T) {
	pool := NewPool(1)
	signer := newSigner(t, Ed25519, privateKey(t, bomb{edwards()}), Options{})
	func() {
		defer func() { _ = recover() }()
		_, _ = pool.Sign(t.Context(), "a", signer, nil)
	}()
	if got := pool.Stats().Busy; got != 0 {
		t.Errorf("%d places are busy", got)
	}
}

// counting is a private key that knows how many use it at once.
type counting struct {
	ed25519.PrivateKey
	now, most *atomic.Int32
}

func (c counting) Sign(_ io.Reader, message []byte, _ crypto.SignerOpts) ([]byte, error) {
	now := c.now.Add(1)
	defer c.now.Add(-1)
	for most := c.most.Load(); now > most && !c.most.CompareAndSwap(most, now); most = c.most.Load() {
	}
	return bytes.Clone(message), nil
}

// Whatever comes together and gives up together: no place is lost, none is taken twice, every turn finds somebody.
func TestPoolUnderPressure(t *testing.T) {
	pool := NewPool(2)
	key := counting{PrivateKey: edwards(), now: new(atomic.Int32), most: new(atomic.Int32)}
	signer := newSigner(t, Ed25519, privateKey(t, key), Options{})
	var done sync.WaitGroup
	for worker := range 32 {
		done.Go(func() {
			owner, random := string(rune('a'+worker%5)), rand.New(rand.NewPCG(1, uint64(worker)))
			for range 200 {
				ctx, cancel := context.WithCancel(t.Context())
				if random.IntN(3) == 0 {
					go cancel() // anywhere between before and after
				}
				got, err := pool.Sign(ctx, owner, signer, []byte(owner))
				if err == nil && string(got) != owner || err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("%q, %v", got, err)
				}
				cancel()
			}
		})
	}
	done.Wait()
	if diff := cmp.Diff(PoolStats{Places: 2}, pool.Stats()); diff != "" {
		t.Error(diff)
	}
	if most := key.most.Load(); most > 2 {
		t.Errorf("%d signed at once, want at most 2", most)
	}
}

func TestPoolHasAtLeastOnePlace(t *testing.T) {
	if got := NewPool(0).Stats().Places; got < 1 {
		t.Errorf("%d places", got)
	}
}

func BenchmarkSign(b *testing.B) {
	message := bytes.Repeat([]byte("amount=10.50&"), 80) // about 1 KB
	all := append(pairs(b), pair{name: "rsa-sha256 4096", a: RSASHA256, key: privateKey(b, rsa4096())})
	for _, pair := range all {
		signer := newSigner(b, pair.a, pair.key, pair.options)
		b.Run(pair.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := signer.Sign(message); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	message := bytes.Repeat([]byte("amount=10.50&"), 80)
	for _, pair := range pairs(b) {
		signature := signed(b, newSigner(b, pair.a, pair.key, pair.options), message)
		verifier := newVerifier(b, pair.a, pair.key, pair.options)
		b.Run(pair.name, func(b *testing.B) {
			for b.Loop() {
				if !verifier.Verify(message, signature) {
					b.Fatal("it does not verify")
				}
			}
		})
	}
}

// What the pool itself costs when nobody waits.
func BenchmarkPool(b *testing.B) {
	pool := NewPool(1)
	signer := newSigner(b, Ed25519, privateKey(b, counting{PrivateKey: edwards(), now: new(atomic.Int32), most: new(atomic.Int32)}), Options{})
	for b.Loop() {
		_, _ = pool.Sign(b.Context(), "a", signer, []byte("m"))
	}
}

// How long merchant b waits for an RSA-2048 signature while a thousand of merchant a's wait.
func BenchmarkPoolNeighbour(b *testing.B) {
	pool := NewPool(0)
	signer := newSigner(b, RSASHA256, privateKey(b, rsa2048()), Options{})
	ctx, stop := context.WithCancel(b.Context())
	var flood sync.WaitGroup
	for range 1000 {
		flood.Go(func() {
			for ctx.Err() == nil {
				_, _ = pool.Sign(ctx, "a", signer, []byte("a"))
			}
		})
	}
	for pool.Stats().Waiting < 990 {
		time.Sleep(time.Millisecond)
	}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if _, err := pool.Sign(b.Context(), "b", signer, []byte("b")); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	stop()
	flood.Wait()
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
