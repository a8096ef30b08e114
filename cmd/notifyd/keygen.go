package main

import (
	"fmt"

	"notifyd/dispatcher"
	"notifyd/ledger"
)

// keygenCmd makes keys that the configuration refers to.
type keygenCmd struct {
	Operator keygenOperatorCmd `cmd:"" help:"Make an operator's key: print it once, and the lines for the configuration, which hold only its hash."`
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
	fmt.Fprintf(s.Out, `# The key, shown only now: keep it where %[1]s keeps secrets, for example as NOTIFYD_OPERATOR_KEY.
# %[2]s
callers:
  operators:
    - name: %[1]s
      key_sha256: %[3]s
`, c.Name, key, hash)
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
