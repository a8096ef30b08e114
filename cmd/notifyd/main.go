// Command notifyd tells merchants what happened to their money: an outbound merchant-callback delivery engine.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"

	"notifyd/health/metrics"
)

type commands struct {
	Dev     devCmd     `cmd:"" help:"Run everything in one process: engine, NATS, Postgres, demo merchants. No set-up."`
	Serve   serveCmd   `cmd:"" help:"Run a node in production."`
	Config  configCmd  `cmd:"" help:"Look at the configuration."`
	Keygen  keygenCmd  `cmd:"" help:"Make an operator's key, or a master key."`
	Send    sendCmd    `cmd:"" help:"Submit notifications from a file of JSON lines or from standard input."`
	Listen  listenCmd  `cmd:"" help:"Play a merchant: receive, verify, answer, print."`
	Verify  verifyCmd  `cmd:"" help:"Check a captured callback as its merchant does, offline, and say what is wrong."`
	Prove   proveCmd   `cmd:"" help:"Check that everything accepted is delivered, final or visibly waiting."`
	Access  accessCmd  `cmd:"" help:"Block, allow and release merchants and sources."`
	Keys    keysCmd    `cmd:"" help:"Import, make, rotate and retire keys and certificates; rotate the master key."`
	Version versionCmd `cmd:"" help:"Print the version."`
}

type versionCmd struct{}

// Run prints the version that the binary was built from.
func (versionCmd) Run(s *streams) error {
	_, err := fmt.Fprintln(s.Out, "notifyd", version())
	return err
}

// version is what the binary was built from.
func version() string {
	b := build()
	return b.Version + " " + b.GoVersion
}

func build() metrics.Build {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return metrics.Build{Version: "unknown"}
	}
	b := metrics.Build{Version: info.Main.Version, GoVersion: info.GoVersion}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			b.Revision = s.Value
		}
	}
	return b
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal ends the process at once
	code := run(ctx, os.Args[1:], &streams{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, ErrIsTerminal: isTerminal(os.Stderr)})
	stop()
	os.Exit(code)
}

// run is main without the process: arguments and streams in, exit code out.
func run(ctx context.Context, args []string, s *streams) int {
	exit := -1
	parser, err := kong.New(&commands{}, kong.Name("notifyd"),
		kong.Description("Tells merchants what happened to their money. `notifyd dev` shows it all in one process."),
		kong.Writers(s.Out, s.Err), kong.Exit(func(code int) { exit = code }), kong.UsageOnError(),
		kong.Vars{"default_data_dir": defaultDataDir()}, kong.BindTo(ctx, (*context.Context)(nil)), kong.Bind(s))
	if err != nil {
		fmt.Fprintln(s.Err, "notifyd:", err)
		return exitUsage
	}
	parsed, err := parser.Parse(args)
	if exit >= 0 { // --help
		return exit
	}
	if err != nil {
		fmt.Fprintln(s.Err, "notifyd:", err)
		fmt.Fprintln(s.Err, "Run `notifyd --help` for the commands, `notifyd COMMAND --help` for one of them.")
		return exitUsage
	}
	err = parsed.Run()
	var coded *exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &coded):
		if coded.err != nil {
			fmt.Fprintln(s.Err, "notifyd:", coded.err)
		}
		return coded.code
	default:
		fmt.Fprintln(s.Err, "notifyd:", err)
		return 1
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}
