package ledger_test

import (
	"testing"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

func TestPostgresConforms(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, cfg ledger.Config) ledgertest.Ledger {
		t.Helper()
		cfg.URL = shared.database(t)
		return openLedger(t, cfg)
	})
}

// Small batches: records of one notification meet in different transactions.
func TestPostgresConformsInSmallBatches(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, cfg ledger.Config) ledgertest.Ledger {
		t.Helper()
		cfg.URL, cfg.BatchRows, cfg.Linger = shared.database(t), 3, -1
		return openLedger(t, cfg)
	})
}

func TestMemoryConforms(t *testing.T) {
	ledgertest.Run(t, func(t *testing.T, cfg ledger.Config) ledgertest.Ledger {
		t.Helper()
		m := ledger.NewMemory(cfg)
		t.Cleanup(m.Close)
		return m
	})
}
