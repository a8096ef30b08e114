// Package natsserver runs one NATS server with JetStream inside the engine's process.
//
// What an acknowledged publish means here: the message was handed to the kernel,
// so it outlives a kill -9 of the engine. Whether it outlives a power cut is
// decided by Config.SyncAlways.
package natsserver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"notifyd/internal/embedded/folderlock"
	"notifyd/internal/streams"
)

// ErrInUse says that another server has the folder.
var ErrInUse = folderlock.ErrInUse

const (
	// DefaultMaxPayload is what an external NATS server allows too, so that what
	// fits here also fits there.
	DefaultMaxPayload = 1 << 20
	// DefaultSyncInterval bounds what a power cut can take. The server's own
	// default of two minutes costs no less CPU.
	DefaultSyncInterval = 200 * time.Millisecond

	largestMaxPayload = 64 << 20 // the server's bound for what one client may have pending

	// In-process reconnecting dials nothing, so there is nobody to go easy on.
	reconnectWait = 100 * time.Millisecond
)

// Config says how the server runs. Dir and Log are needed.
type Config struct {
	// Dir keeps streams and consumers. It is made if missing.
	Dir string
	Log *zap.Logger
	// SyncAlways calls fsync before each acknowledgement.
	SyncAlways bool
	// SyncInterval is the time between two fsyncs without SyncAlways.
	SyncInterval time.Duration
	// MaxPayload is the largest message in bytes, headers included.
	MaxPayload int
	// MaxStore bounds what all streams may reserve or use on disk, in bytes.
	// Zero leaves it to the server: three quarters of what is free at the start.
	MaxStore int64
	// Listen is a host:port for clients outside this process; port 0 picks a free
	// one. Empty, the normal case, opens no port. There is no authentication.
	Listen string
}

func (c Config) withDefaults() Config {
	if c.MaxPayload == 0 {
		c.MaxPayload = DefaultMaxPayload
	}
	if c.SyncInterval == 0 {
		c.SyncInterval = DefaultSyncInterval
	}
	return c
}

// Validate reports the first setting that cannot work.
func (c Config) Validate() error {
	c = c.withDefaults()
	switch {
	case c.Dir == "":
		return errors.New("nats: dir is empty")
	case c.Log == nil:
		return errors.New("nats: log is missing")
	case c.MaxPayload < DefaultMaxPayload || c.MaxPayload > largestMaxPayload:
		return fmt.Errorf("nats: max payload is %d bytes, must be from %d to %d", c.MaxPayload, DefaultMaxPayload, largestMaxPayload)
	case c.SyncInterval < 0 || c.SyncInterval > time.Minute:
		return fmt.Errorf("nats: sync interval is %s, must be above 0 and at most 1m", c.SyncInterval)
	case c.MaxStore < 0:
		return fmt.Errorf("nats: max store is %d bytes, must not be negative", c.MaxStore)
	}
	return nil
}

// Server is a running NATS server. Its methods may be called concurrently.
type Server struct {
	nats *server.Server
	log  *bridge
	lock *folderlock.Lock

	stop     sync.Once
	stopping chan struct{} // closed first
	reviving sync.WaitGroup
	stopped  chan struct{} // closed when all is down and the folder is free
}

// Start runs a server on the folder and returns when JetStream has recovered its
// streams. ctx bounds only the start. A taken folder gives ErrInUse.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	opts, err := options(cfg.withDefaults())
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make nats folder: %w", err)
	}
	lock, err := folderlock.Acquire(cfg.Dir)
	if err != nil {
		return nil, err
	}
	inner, err := server.NewServer(opts)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up nats: %w", err), lock.Release())
	}
	s := &Server{nats: inner, log: &bridge{log: cfg.Log}, lock: lock, stopping: make(chan struct{}), stopped: make(chan struct{})}
	inner.SetLogger(s.log, false, false)
	if err := s.run(ctx); err != nil {
		s.shutDown()
		return nil, err
	}
	s.reviving.Go(func() { s.revive(opts) })
	return s, nil
}

const (
	reviveEvery = time.Second
	// reviveSpace is how much must be free in the folder before JetStream is turned on again, in bytes: with less it
	// would turn itself off at once.
	reviveSpace = 64 << 20
)

// revive starts JetStream anew, until the server stops, when the disk has failed it: a stream that could not write stays
// broken otherwise, and so does all of JetStream when it has turned itself off. What was acknowledged is still there.
func (s *Server) revive(opts *server.Options) {
	tick := time.NewTicker(reviveEvery)
	defer tick.Stop()
	for {
		select {
		case <-s.stopping:
			return
		case <-tick.C:
		}
		if !s.nats.Running() || (s.nats.JetStreamEnabled() && !s.log.writeFailed.Load()) {
			continue
		}
		free, err := freeBytes(opts.StoreDir)
		if err != nil || free < reviveSpace {
			continue
		}
		s.log.writeFailed.Store(false)
		_ = s.nats.ShutdownJetStream() // fails when it is off already
		err = s.nats.EnableJetStream(&server.JetStreamConfig{
			StoreDir: opts.StoreDir, SyncInterval: opts.SyncInterval, SyncAlways: opts.SyncAlways, MaxStore: opts.JetStreamMaxStore, Strict: !opts.NoJetStreamStrict,
		})
		s.log.log.Warn("the disk had failed jetstream, which is started anew", zap.Uint64("free_bytes", free), zap.Error(err))
	}
}

func freeBytes(dir string) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("look at %s: %w", dir, err)
	}
	return fs.Bavail * uint64(fs.Bsize), nil //nolint:gosec // a block's size
}

func options(cfg Config) (*server.Options, error) {
	opts := &server.Options{
		ServerName:             "notifyd",
		NoSigs:                 true, // the engine drains first, then stops us
		DontListen:             true,
		JetStream:              true,
		DisableJetStreamBanner: true,
		StoreDir:               cfg.Dir,
		JetStreamMaxStore:      cfg.MaxStore,
		MaxPayload:             int32(cfg.MaxPayload), //nolint:gosec // Validate bounds it
		SyncAlways:             cfg.SyncAlways,
		SyncInterval:           cfg.SyncInterval,
	}
	if cfg.Listen == "" {
		return opts, nil
	}
	host, portText, err := net.SplitHostPort(cfg.Listen)
	if err != nil {
		return nil, fmt.Errorf("read nats listen address: %w", err)
	}
	port, err := strconv.ParseUint(portText, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("read nats listen port: %w", err)
	}
	opts.DontListen, opts.Host, opts.Port = false, host, int(port)
	if port == 0 {
		opts.Port = server.RANDOM_PORT // zero would mean the default port
	}
	return opts, nil
}

// run waits until the server has started. When ctx ends first, it has the start
// broken off; how fast that happens is up to the stream being recovered.
func (s *Server) run(ctx context.Context) error {
	started := make(chan struct{})
	go func() {
		defer close(started)
		s.nats.Start()
	}()
	select {
	case <-started:
	case <-ctx.Done():
		s.nats.Shutdown()
		<-started
		return fmt.Errorf("start nats: %w", ctx.Err())
	}
	// The server reports a failed start only to its log.
	if fatal := s.log.fatalMessage(); fatal != "" {
		return fmt.Errorf("start nats: %s", fatal)
	}
	if !s.nats.JetStreamEnabled() {
		return errors.New("start nats: jetstream is not enabled")
	}
	return nil
}

// Connect opens an in-process connection that reconnects for as long as it is not
// closed. It must be closed, or better drained, before Stop; opts win over what is set here.
func (s *Server) Connect(opts ...nats.Option) (*nats.Conn, error) {
	all := append([]nats.Option{
		nats.Name("notifyd"),
		nats.InProcessServer(s.nats),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(reconnectWait),
		nats.SyncQueueLen(streams.SyncQueue),
	}, opts...)
	conn, err := nats.Connect("", all...)
	if err != nil {
		return nil, fmt.Errorf("connect in process: %w", err)
	}
	return conn, nil
}

// ClientURL is where clients outside this process connect. It is empty without Config.Listen.
func (s *Server) ClientURL() string {
	if s.nats.Addr() == nil {
		return ""
	}
	return s.nats.ClientURL()
}

// Check tells why the server cannot take messages, or nil.
func (s *Server) Check() error {
	switch {
	case !s.nats.Running():
		return errors.New("nats is not running")
	case !s.nats.JetStreamEnabled(), s.log.writeFailed.Load():
		return errors.New("jetstream cannot write: the disk failed or is full; it comes back by itself when 64 MiB are free")
	}
	return nil
}

// Stop shuts down, waits until everything is on disk and frees the folder. When
// ctx ends first Stop returns its error, and the shutdown goes on: a later Stop
// waits for it. More calls are harmless.
func (s *Server) Stop(ctx context.Context) error {
	// The end of this goroutine is s.stopped, awaited here and by any later Stop.
	s.stop.Do(func() { go s.shutDown() })
	select {
	case <-s.stopped:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop nats: %w", ctx.Err())
	}
}

func (s *Server) shutDown() {
	close(s.stopping)
	s.reviving.Wait()
	s.nats.Shutdown()
	s.nats.WaitForShutdown()
	if err := s.lock.Release(); err != nil {
		s.log.log.Warn("nats folder stays locked", zap.Error(err))
	}
	close(s.stopped)
}
