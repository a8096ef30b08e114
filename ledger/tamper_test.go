package ledger_test

import (
	"strings"
	"testing"

	"notifyd/ledger"
	"notifyd/ledger/ledgertest"
)

// What was accepted, sent and answered cannot be changed by a statement, not even by the ledger's own user.
func TestEvidenceCannotBeChanged(t *testing.T) {
	url := shared.database(t)
	l := openLedger(t, ledger.Config{URL: url})
	list, records := newRecords(3, ledgertest.Start)
	reserve(t, l, list)
	mustRecord(t, l, records)
	db := connect(t, url)
	for _, statement := range []string{
		`update attempts set outcome = 1`,
		`update attempts set response_body = 'success' where number = 1`,
		`delete from attempts`,
		`truncate attempts`,
		`update notifications set body = '{}'`,
		`update notifications set notify_url = 'https://elsewhere.example', state = 4`,
		`update notifications set minor_units = minor_units * 10`,
		`delete from notifications`,
		`truncate notifications cascade`,
		`update attempts_p` + ledgertest.Start.Format("20060102") + ` set outcome = 1`, // past the parent
	} {
		if _, err := db.Exec(t.Context(), statement); err == nil || !strings.Contains(err.Error(), "append only") {
			t.Errorf("%s: %v", statement, err)
		}
	}
	_, attempts, err := l.Find(t.Context(), list[0].ID)
	if err != nil || len(attempts) != 1 {
		t.Errorf("found %d attempts, %v", len(attempts), err)
	}
}
