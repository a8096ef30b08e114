// Command natsd is a NATS server with JetStream in a process of its own, for tests that stop, kill and pause it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

func main() {
	opts := &server.Options{Host: "127.0.0.1", NoSigs: true, JetStream: true, DisableJetStreamBanner: true, SyncInterval: 200 * time.Millisecond}
	var routes string
	flag.StringVar(&opts.ServerName, "name", "natsd", "name, unique in its cluster")
	flag.IntVar(&opts.Port, "port", 4222, "port of clients")
	flag.StringVar(&opts.StoreDir, "store", "", "folder of the streams")
	flag.IntVar(&opts.Cluster.Port, "cluster-port", 0, "port of the cluster's other servers; 0: it stands alone")
	flag.StringVar(&routes, "routes", "", "host:port of the cluster's servers, separated by commas")
	flag.StringVar(&opts.Username, "user", "", "who may connect")
	flag.StringVar(&opts.Password, "password", "", "and by what")
	flag.BoolVar(&opts.SyncAlways, "sync-always", false, "write every message to disk before it is acknowledged")
	flag.Parse()
	if err := run(opts, routes); err != nil {
		fmt.Fprintln(os.Stderr, "natsd:", err)
		os.Exit(1)
	}
}

// nowhere is an address where nobody listens.
const nowhere = "127.0.0.1:1"

func run(opts *server.Options, routes string) error {
	if opts.Cluster.Port != 0 {
		// Clients use the addresses that they were given: a link may stand before each.
		opts.Cluster.Name, opts.Cluster.Host, opts.Cluster.NoAdvertise = "scenario", "127.0.0.1", true
		opts.Cluster.Advertise = nowhere // the others know their routes, and shall not find one around its link
		for route := range strings.SplitSeq(routes, ",") {
			opts.Routes = append(opts.Routes, &url.URL{Scheme: "nats", Host: route})
		}
	}
	s, err := server.NewServer(opts)
	if err != nil {
		return err
	}
	s.ConfigureLogger()
	asked := make(chan os.Signal, 1)
	signal.Notify(asked, syscall.SIGTERM, os.Interrupt)
	s.Start()
	if !s.ReadyForConnections(30 * time.Second) {
		s.Shutdown()
		return errors.New("not ready in 30 s")
	}
	fmt.Println("ready")
	orphaned := make(chan struct{})
	go func() { // ends with the process
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(orphaned)
	}()
	select {
	case <-asked:
	case <-orphaned:
	}
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}
