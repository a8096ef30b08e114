package main

import (
	"fmt"
	"slices"
	"strings"
)

// role is a part of the engine that a node may run. Nodes of different roles share NATS and Postgres.
type role string

// The roles. A node that takes submissions without the sync lane asks the nodes that have it.
const (
	roleIntake role = "intake" // takes submissions, answers for them
	roleSync   role = "sync"   // asks merchants while callers wait
	roleAsync  role = "async"  // delivers what nobody waits for, retries that have come due included
	roleRetry  role = "retry"  // feeds retries from the ledger to the delay window, rescues what is overdue
	roleLedger role = "ledger" // makes partitions, drops what is older than the retention
)

func allRoles() []role { return []role{roleIntake, roleSync, roleAsync, roleRetry, roleLedger} }

type roles []role

func (r roles) has(one role) bool { return slices.Contains(r, one) }

// all reports whether nothing is left to other nodes.
func (r roles) all() bool { return len(r) == len(allRoles()) }

func (r roles) String() string {
	names := make([]string, len(r))
	for i, one := range r {
		names[i] = string(one)
	}
	return strings.Join(names, ",")
}

func (r roles) validate() error {
	if len(r) == 0 {
		return fmt.Errorf("roles: is empty: name some of %s", roles(allRoles()))
	}
	for i, one := range r {
		switch {
		case one == "console":
			return fmt.Errorf("roles: %q: this version has no console", one)
		case !slices.Contains(allRoles(), one):
			return fmt.Errorf("roles: %q: must be one of %s", one, roles(allRoles()))
		case slices.Contains(r[:i], one):
			return fmt.Errorf("roles: %q: is named twice", one)
		}
	}
	return nil
}
