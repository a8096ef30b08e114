// Package postgres runs a private Postgres for an engine that has no other.
//
// Its life hangs on the engine's: it is started with it, restarted when it dies,
// stopped with it, and shuts down by itself when the engine is killed.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"

	"notifyd/internal/embedded/folderlock"
)

// ErrInUse says that another engine has the folder.
var ErrInUse = folderlock.ErrInUse

const (
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = 5 * time.Second
	// A postmaster that lived this long has earned a quick restart again.
	steadyLife = time.Minute
)

// Server is a running, supervised Postgres. Its methods may be called concurrently.
type Server struct {
	// Set by Start and never changed.
	cfg       Config
	folder    folder
	account   account
	binaries  binaries
	socket    string
	temporary bool // the socket's folder goes when the server stops
	log       *os.File
	lock      *folderlock.Lock

	// Stop's part.
	end       context.CancelFunc // tells supervise to end
	hurryOnce sync.Once
	hurry     chan struct{} // closed when the fast shutdown takes too long for the caller
	closeOnce sync.Once
	done      chan struct{} // closed by supervise, as the last thing it does

	// Written by supervise.
	mu       sync.Mutex
	current  *process // nil while Postgres is down
	lastErr  error    // why it is down
	restarts int
}

// Start brings up Postgres on the folder, made on the first time, and returns
// when the engine's database can be reached. ctx bounds only the start.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	f, err := openFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	lock, err := folderlock.Acquire(string(f))
	if err != nil {
		return nil, err
	}
	s := &Server{
		cfg:    cfg.withDefaults(),
		folder: f,
		lock:   lock,
		hurry:  make(chan struct{}),
		done:   make(chan struct{}),
	}
	p, err := s.start(ctx)
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	life, end := context.WithCancel(context.WithoutCancel(ctx))
	s.end = end
	s.setUp(p)
	go s.supervise(life, p) // its end is s.done, awaited by Stop
	return s, nil
}

// start is the first start: it also chooses who runs what, and makes the data.
func (s *Server) start(ctx context.Context) (*process, error) {
	var err error
	if s.account, err = pickAccount(s.folder.data(), s.cfg.User); err != nil {
		return nil, err
	}
	if err := s.account.checkWayTo(ctx, string(s.folder)); err != nil {
		return nil, err
	}
	version, err := s.folder.dataVersion()
	if err != nil {
		return nil, err
	}
	if err := s.pickBinaries(ctx, version); err != nil {
		return nil, err
	}
	s.folder.removeHalfMade(s.cfg.Log)
	if version == 0 {
		if err := s.folder.initialise(ctx, s.account, s.binaries); err != nil {
			return nil, err
		}
	}
	if err := s.handOver(); err != nil {
		return nil, err
	}
	if s.socket, s.temporary, err = s.folder.socketFolder(s.account); err != nil {
		return nil, err
	}
	if s.log, err = s.folder.openLog(); err != nil {
		return nil, err
	}
	return s.bringUp(ctx)
}

func (s *Server) pickBinaries(ctx context.Context, version int) error {
	found, err := findBinaries(ctx, s.account, s.cfg, debianFolders)
	if err != nil {
		return err
	}
	if s.binaries, err = choose(found, s.folder.data(), version); err != nil {
		return err
	}
	if s.binaries.bundle != "" {
		s.binaries, err = readyBundle(ctx, s.account, s.binaries, s.folder.bundle())
	}
	return err
}

// handOver is for data that came from elsewhere, restored by root for instance.
func (s *Server) handOver() error {
	info, err := os.Stat(s.folder.data())
	if err != nil {
		return fmt.Errorf("read data folder: %w", err)
	}
	if s.account.owns(info) {
		return nil
	}
	if err := s.account.own(s.folder.data()); err != nil {
		return fmt.Errorf("hand over data folder: %w", err)
	}
	return nil
}

// bringUp is the same for the first start and for every restart.
func (s *Server) bringUp(ctx context.Context) (*process, error) {
	if err := endLeftovers(ctx, s.folder.data(), s.cfg.StopGrace, s.cfg.Log); err != nil {
		return nil, err
	}
	if err := removeStalePid(s.folder.data()); err != nil {
		return nil, err
	}
	// The postmaster's life is not ctx's, which may bound a start only.
	args := serverArgs(s.folder.data(), s.socket, s.cfg.Settings)
	cmd := s.account.command(context.WithoutCancel(ctx), fastShutdown, s.binaries.postgres(), args...)
	cmd.Stdout, cmd.Stderr = s.log, s.log
	offset := logSize(s.log)
	p, err := launch(cmd)
	if err != nil {
		return nil, err
	}
	if err := awaitReady(ctx, p, s.socket, s.cfg.StartTimeout); err != nil {
		p.end(s.cfg.StopGrace, s.hurry)
		return nil, failure(err, s.log, offset)
	}
	s.cfg.Log.Info("postgres is up", zap.Int("pid", p.handle.Pid), zap.Int("version", s.binaries.major),
		zap.String("socket", s.socket), zap.Duration("took", time.Since(p.born)))
	return p, nil
}

// supervise keeps Postgres up until life ends, then shuts it down.
func (s *Server) supervise(life context.Context, p *process) {
	defer close(s.done)
	backoff := firstBackoff
	for p != nil {
		select {
		case <-life.Done():
			if !p.end(s.cfg.StopGrace, s.hurry) {
				s.cfg.Log.Warn("postgres did not stop in time and was ended at once; the next start recovers")
			}
			return
		case <-p.exited:
		}
		if time.Since(p.born) > steadyLife {
			backoff = firstBackoff
		}
		err := fmt.Errorf("postgres died: %w", asError(p.err))
		s.cfg.Log.Error("postgres died, restarting it", zap.Error(err))
		s.setDown(err)
		p, backoff = s.revive(life, backoff)
	}
}

// revive tries until Postgres is up again. It returns nil when life has ended or
// when it gives up. The backoff goes on from where it was, so that a Postgres
// that comes up only to die is not restarted in a tight loop.
func (s *Server) revive(life context.Context, backoff time.Duration) (*process, time.Duration) {
	for failures := 1; ; failures++ {
		if !pause(life, backoff) {
			return nil, backoff
		}
		backoff = min(2*backoff, lastBackoff)
		p, err := s.bringUp(life)
		if err == nil {
			s.setUp(p)
			return p, backoff
		}
		if life.Err() != nil {
			return nil, backoff
		}
		s.setDown(fmt.Errorf("restart postgres: %w", err))
		if failures == s.cfg.GiveUpAfter {
			s.cfg.Log.Error("giving up on postgres", zap.Int("failures", failures), zap.Error(err))
			return nil, backoff
		}
		s.cfg.Log.Error("postgres does not restart, trying again", zap.Duration("in", backoff), zap.Error(err))
	}
}

// pause returns false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Server) setUp(p *process) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastErr != nil {
		s.restarts++
	}
	s.current, s.lastErr = p, nil
}

func (s *Server) setDown(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.current, s.lastErr = nil, err
}

// URL is the pgx connection string of the engine's database, over the Unix
// socket. It stays the same across restarts.
func (s *Server) URL() string {
	return connectionURL(roleName, databaseName, s.socket)
}

// PID is the postmaster's process id, or 0 while it is down.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return 0
	}
	return s.current.handle.Pid
}

// Err tells why Postgres is down: it died, or could not be restarted yet. It is
// nil while Postgres is up and after Stop.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastErr
}

// Restarts counts how often Postgres died and came up again.
func (s *Server) Restarts() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.restarts
}

// Done is closed when nobody restarts Postgres any more: after Stop, or when
// Config.GiveUpAfter was reached, and then Err tells why.
func (s *Server) Done() <-chan struct{} {
	return s.done
}

// Stop disconnects all clients, shuts down and frees the folder. When ctx or
// Config.StopGrace ends first it shuts down at once instead, which leaves the
// recovery to the next start but loses nothing committed. It returns when
// Postgres is gone; more calls are harmless.
func (s *Server) Stop(ctx context.Context) error {
	s.end()
	select {
	case <-s.done:
	case <-ctx.Done():
		s.hurryOnce.Do(func() { close(s.hurry) })
		<-s.done // bounded: what does not hear is killed
	}
	var err error
	s.closeOnce.Do(func() { err = s.close() })
	return err
}

// close gives back what outlives the postmaster.
func (s *Server) close() error {
	s.setDown(nil)
	var errs []error
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.temporary {
		_ = os.Remove(s.socket) // not empty after a kill; the next start uses it again
	}
	if err := errors.Join(append(errs, s.lock.Release())...); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	return nil
}
