package main

import (
	"fmt"

	"notifyd/dispatcher"
	"notifyd/ledger"
)

// keygenCmd makes keys that the configuration refers to.
type keygenCmd struct {
	Operator keygenOperatorCmd `cmd:"" help:"Make an operator's key: print it once on the error stream, and the lines for the configuration, which hold only its hash."`
	Master   keygenMasterCmd   `cmd:"" help:"Make a master key, which seals the secrets of merchants and sources, in a file that does not exist yet."`
}

type keygenOperatorCmd struct {
	Name string `arg:"" help:"Whose key it is; stands in logs and beside resends."`
}

// Run prints the key and its hash.
func (c *keygenOperatorCmd) Run(s *streams) error {
	key, hash, err := dispatcher.NewOperatorKey(c.Name)
	if err != nil {
		return &exitError{code: exitUsage, err: err}
	}
	fmt.Fprintf(s.Err, "notifyd: the key, shown only now; keep it where %s keeps secrets, for example as NOTIFYD_OPERATOR_KEY:\n%s\n", c.Name, key)
	fmt.Fprintf(s.Out, `callers:
  operators:
    - name: %s
      key_sha256: %s
`, c.Name, hash)
	return nil
}

type keygenMasterCmd struct {
	File string `arg:"" help:"Where to write it, with mode 0600."`
}

// Run writes the file, never over another one.
func (c *keygenMasterCmd) Run(s *streams) error {
	if err := ledger.CreateMasterKey(c.File); err != nil {
		return err
	}
	fmt.Fprintf(s.Out, "notifyd: %s is made. Keep a copy apart from the database: without it the secrets in the ledger cannot be read.\n", c.File)
	return nil
}
