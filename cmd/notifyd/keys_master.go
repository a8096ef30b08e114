package main

import (
	"context"
	"fmt"

	"connectrpc.com/connect"

	"notifyd/ledger"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// keysMasterCmd rotates the master key.
type keysMasterCmd struct {
	Add    keysMasterAddCmd    `cmd:"" help:"Add a fresh key to a master key file."`
	Status keysMasterStatusCmd `cmd:"" help:"Say which key seals what, and which nodes lack it."`
	Drop   keysMasterDropCmd   `cmd:"" help:"Remove a key that seals nothing any more from a master key file."`
}

// Help is the long text of --help.
func (keysMasterCmd) Help() string {
	return `Rotation, while the engine runs:

  1. notifyd keys master add master.key        a fresh key beside the old one
  2. give the file to every node, and restart the nodes one after another, in any order
  3. the nodes bring the new key into use when all of them have it, and seal anew whatever the old one sealed
  4. notifyd keys master status                until the old key has sealed 0
  5. notifyd keys master drop master.key ID    then give the file to every node again

A node that lacks a key which is in use, or which still seals something, does not start. Backups and settings snapshots from before
need the old key: keep it apart for as long as you keep them.`
}

type keysMasterAddCmd struct {
	File string `arg:"" help:"The master key file." type:"existingfile"`
}

// Run adds.
func (c *keysMasterAddCmd) Run(s *streams) error {
	id, err := ledger.AddMasterKey(c.File)
	if err != nil {
		return err
	}
	say(s.Out, "notifyd: key %d is added to %s. Give the file to every node and restart them; it comes into use when all have it.\n", id, c.File)
	return nil
}

type keysMasterStatusCmd struct{ keysConn }

// Run shows.
func (c *keysMasterStatusCmd) Run(ctx context.Context, s *streams) error {
	return c.keys(func(to keyClient) error {
		res, err := to.GetMasterKeys(ctx, connect.NewRequest(&notifydv1.GetMasterKeysRequest{}))
		if err != nil {
			return err
		}
		for _, k := range res.Msg.Keys {
			if c.JSON {
				printProto(s, k)
				continue
			}
			use := "not in use"
			if k.InUse {
				use = "in use"
			}
			say(s.Out, "%d  %s, has sealed %d, missing on %d processes\n", k.Id, use, k.Sealed, k.MissingOn)
		}
		return nil
	})
}

type keysMasterDropCmd struct {
	keysConn
	File string `arg:"" help:"The master key file." type:"existingfile"`
	ID   uint32 `arg:"" help:"Which key, as status shows it." name:"id"`
}

// Run asks a node whether anything needs the key, then removes it from the file.
func (c *keysMasterDropCmd) Run(ctx context.Context, s *streams) error {
	err := c.keys(func(to keyClient) error {
		res, err := to.GetMasterKeys(ctx, connect.NewRequest(&notifydv1.GetMasterKeysRequest{}))
		if err != nil {
			return err
		}
		replaced := false
		for _, k := range res.Msg.Keys {
			switch {
			case k.Id == c.ID && k.InUse:
				return notNow("key %d is in use", c.ID)
			case k.Id == c.ID && k.Sealed > 0:
				return notNow("key %d still seals %d rows: they are sealed anew within minutes", c.ID, k.Sealed)
			case k.InUse && k.MissingOn > 0:
				return notNow("key %d, which is in use, is missing on %d processes", k.Id, k.MissingOn)
			}
			replaced = replaced || k.InUse
		}
		if !replaced {
			return notNow("the server does not say which key is in use")
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := ledger.DropMasterKey(c.File, c.ID); err != nil {
		return err
	}
	say(s.Out, "notifyd: key %d is removed from %s. Backups from before need it: keep a copy apart.\n", c.ID, c.File)
	return nil
}

func notNow(format string, args ...any) error {
	return &exitError{code: exitSome, err: fmt.Errorf(format, args...)}
}
