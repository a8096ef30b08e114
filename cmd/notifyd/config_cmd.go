package main

import (
	"os"

	"notifyd/internal/settings"
)

// configCmd looks at the configuration.
type configCmd struct {
	Print configPrintCmd `cmd:"" help:"Print the effective settings as YAML, each with where it comes from; secrets are masked."`
}

type configPrintCmd struct {
	configFlags
	Dev bool `help:"With the defaults of notifyd dev instead of those of notifyd serve."`
}

// Run prints, faults or not: whoever looks for a fault wants to see where a value comes from.
func (c *configPrintCmd) Run(s *streams) error {
	defaults := defaultConfig()
	if c.Dev {
		defaults = devConfig()
	}
	cfg, origins, err := c.load(defaults, os.Environ(), nil)
	if origins == nil {
		return &exitError{code: exitUsage, err: err}
	}
	if err := settings.Print(s.Out, &cfg, origins); err != nil {
		return err
	}
	if err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	return nil
}
