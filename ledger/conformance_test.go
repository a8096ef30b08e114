package ledger_test

import (
	"testing"
	"time"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

func TestPostgresConforms(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, now func() time.Time) ledgertest.Ledger {
		t.Helper()
		return openLedger(t, ledger.Config{URL: shared.database(t), Now: now})
	})
}

// Small batches: records of one notification meet in different transactions.
func TestPostgresConformsInSmallBatches(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, now func() time.Time) ledgertest.Ledger {
		t.Helper()
		return openLedger(t, ledger.Config{URL: shared.database(t), Now: now, BatchRows: 3, Linger: -1})
	})
}

func TestMemoryConforms(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, now func() time.Time) ledgertest.Ledger {
		t.Helper()
		m := ledger.NewMemory(ledger.Config{Now: now})
		t.Cleanup(m.Close)
		return m
	})
}
