package main_test

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"notifyd/client/verify"
	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// versionBefore is the commit whose nodes must get along with those of this version: the last one with an older schema.
const versionBefore = "169260e"

// oldBinary builds the version before. The go command's cache makes all but the first time quick.
func oldBinary(t *testing.T) *scenario.Binary {
	t.Helper()
	git := func(args ...string) (string, error) {
		out, err := exec.CommandContext(t.Context(), "git", append([]string{"-C", "../.."}, args...)...).CombinedOutput()
		return strings.TrimSpace(string(out)), err
	}
	if out, err := git("cat-file", "-e", versionBefore+"^{commit}"); err != nil {
		t.Skipf("this clone does not have commit %s: %v %s", versionBefore, err, out)
	}
	dir := t.TempDir()
	archive := filepath.Join(dir, "old.tar")
	if out, err := git("archive", "--output="+archive, versionBefore); err != nil {
		t.Fatalf("git archive: %v %s", err, out)
	}
	source := filepath.Join(dir, "source")
	if err := os.Mkdir(source, 0o750); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "tar", "-xf", archive, "-C", source).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v %s", err, out)
	}
	path := filepath.Join(dir, "notifyd-old")
	build := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags=-s -w", "-o", path, "./cmd/notifyd") // the folder differs each time: -trimpath lets the cache work
	build.Dir = source
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the version before: %v\n%s", err, out)
	}
	return scenario.At(path)
}

// upgrading is a file that both versions read.
func upgrading(t *testing.T, dir string) string {
	t.Helper()
	return writeConfig(t, dir, `
retry: {sweep_every: 200ms, grace: 1s}
dispatcher: {gate: {consecutive_failures: 1000}}
`)
}

func (s *shops) verify(t *testing.T, secrets map[string]string) {
	t.Helper()
	for _, seen := range s.Seen() {
		verifier, err := verify.Standard(secrets[filepath.Base(seen.Path)])
		if err != nil {
			t.Fatal(err)
		}
		if _, err := verifier.VerifyMessage(verify.Message{Header: seen.Header, Body: seen.Body}, seen.At); err != nil {
			t.Errorf("signature of %s for %s: %v", seen.ID, seen.Path, err)
		}
	}
}

// proven waits until a node's proof finds everything final.
func proven(t *testing.T, w *world, delivered int) {
	t.Helper()
	var proof *notifydv1.ProveResponse
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the proof: %v", proof)
		}
	})
	eventually(t, "the proof finds everything delivered", func() bool {
		proof = w.prove()
		return proof.Missing == 0 && proof.Unanswered == 0 && proof.Final["delivered"] == int64(delivered) && proof.Accepted == int64(delivered)
	})
}

// quietLog fails for each error in the log, in the words of either version, and shows the warnings: a batch that waits is
// written later.
func quietLog(t *testing.T, name string, w *world) {
	t.Helper()
	grave, odd := regexp.MustCompile(`"level":"error"|\tERROR\t|deadlock`), regexp.MustCompile(`"level":"warn"|\tWARN\t`)
	for line := range strings.Lines(w.Output()) {
		switch {
		case grave.MatchString(line):
			t.Errorf("%s says: %s", name, line)
		case odd.MatchString(line):
			t.Logf("%s says: %s", name, line)
		}
	}
}

func TestUpgrade(t *testing.T) {
	old := oldBinary(t)
	t.Run("and back", func(t *testing.T) { upgradeAndBack(t, old) })
	t.Run("side by side", func(t *testing.T) { upgradeSideBySide(t, old) })
}

// A data folder of the version before is taken over, and taken back: nothing is lost and nothing is sent twice.
func upgradeAndBack(t *testing.T, old *scenario.Binary) {
	dir := scenario.DataDir(t)
	file := upgrading(t, dir)
	on := func(b *scenario.Binary) *world {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		t.Cleanup(cancel)
		return &world{Engine: b.Start(t, filepath.Join(dir, "data"), "--config="+file), t: t, ctx: ctx}
	}
	s := newShops(t)
	s.answer(http.StatusOK, "well", "resumed", "paused")
	s.answer(http.StatusInternalServerError, "healing", "failing")

	w := on(old)
	secrets := s.register(w, "well", "healing", "failing", "resumed", "paused")
	w.pause("resumed", "paused")
	accepted := w.day("old", "well", "healing", "failing", "resumed", "paused")
	w.untilAll(notifydv1.State_STATE_DELIVERED, accepted["old-well"])
	w.untilAll(notifydv1.State_STATE_RETRYING, accepted["old-healing"], accepted["old-failing"])
	w.untilAll(notifydv1.State_STATE_HELD, accepted["old-resumed"], accepted["old-paused"])
	w.Stop(t)

	w = on(engineBinary)
	s.answer(http.StatusOK, "healing")
	w.resume("resumed")
	maps.Copy(accepted, w.day("new", "well", "healing", "failing", "resumed", "paused"))
	for _, m := range []string{"well", "healing", "resumed"} {
		w.untilAll(notifydv1.State_STATE_DELIVERED, accepted["old-"+m], accepted["new-"+m])
	}
	w.untilAll(notifydv1.State_STATE_RETRYING, accepted["new-failing"])
	w.untilAll(notifydv1.State_STATE_HELD, accepted["new-paused"])
	if again := w.submit(draft("well", "payout", "old-well-0")); !again.Duplicate || again.State != notifydv1.State_STATE_DELIVERED {
		t.Errorf("submitted to the old version, then to the new one: %v", again)
	}
	w.Stop(t)
	quietLog(t, "the new version", w)

	w = on(old)
	s.answer(http.StatusOK, "failing")
	w.resume("paused")
	maps.Copy(accepted, w.day("back", "well"))
	if again := w.submit(draft("well", "payout", "new-well-0")); !again.Duplicate || again.State != notifydv1.State_STATE_DELIVERED {
		t.Errorf("submitted to the new version, then to the old one: %v", again)
	}
	w.untilAll(notifydv1.State_STATE_DELIVERED, slices.Concat(slices.Collect(maps.Values(accepted))...))
	proven(t, w, len(accepted)*restoredEach)
	w.Stop(t)
	quietLog(t, "the old version on the new schema", w)

	for id, n := range s.acknowledgements() {
		if n != 1 {
			t.Errorf("%s was delivered %d times", id, n)
		}
	}
	s.verify(t, secrets)
}

// A node of this version starts and migrates beside one of the version before, which works on. Each has a NATS of its own.
func upgradeSideBySide(t *testing.T, old *scenario.Binary) {
	dir := scenario.DataDir(t)
	file := upgrading(t, dir)
	s := newShops(t)
	s.answer(http.StatusOK, "well", "flaky")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	older := &world{Engine: old.Start(t, filepath.Join(dir, "old"), "--config="+file), t: t, ctx: ctx}
	secrets := s.register(older, "well", "flaky")
	s.answer(http.StatusInternalServerError, "flaky")
	pg := regexp.MustCompile(`psql '([^']+)'`).FindStringSubmatch(older.Output())
	if pg == nil {
		t.Fatal("the banner of the version before does not say where its Postgres is")
	}

	var accepted []string
	migrated := make(chan struct{})
	var callers sync.WaitGroup
	callers.Go(func() {
		for i := 0; ; i++ {
			for _, m := range []string{"well", "flaky"} {
				res, err := older.trySubmit(draft(m, "payout", fmt.Sprintf("load-%s-%d", m, i)))
				if err != nil {
					t.Errorf("submit while the other node migrates: %v", err)
					return
				}
				accepted = append(accepted, res.Id)
			}
			select {
			case <-migrated:
				return
			case <-time.After(5 * time.Millisecond): // a payment service's own pace
			}
		}
	})
	newer := serve(t, filepath.Join(dir, "new"), "--config="+file, "--set=callers.required=false", "--set=drain_notice=0s",
		"--set=egress.allowed_networks=127.0.0.0/8", "--set=postgres.url="+pg[1], "--set=ledger.master_key_file="+filepath.Join(dir, "old", "master.key"))
	close(migrated)
	callers.Wait()

	// Both take submissions, also the same ones: what one has on record as delivered the other knows.
	// Before that it cannot know (docs/backup.md).
	for i := range 10 {
		for turn, pair := range [][2]*world{{older, newer}, {newer, older}} {
			first := pair[0].submit(draft("well", "payout", fmt.Sprintf("both-%d-%d", turn, i)))
			pair[1].until(first.Id, notifydv1.State_STATE_DELIVERED) // it reads what is durable
			second := pair[1].submit(draft("well", "payout", fmt.Sprintf("both-%d-%d", turn, i)))
			if first.Id != second.Id || !second.Duplicate || second.State != notifydv1.State_STATE_DELIVERED {
				t.Errorf("submitted to both: %v, then %v", first, second)
			}
			accepted = append(accepted, first.Id)
		}
		accepted = append(accepted, newer.submit(draft("flaky", "payout", fmt.Sprintf("new-%d", i))).Id)
	}
	s.answer(http.StatusOK, "flaky")
	proven(t, newer, len(accepted))
	proven(t, older, len(accepted))
	newer.Stop(t)
	older.Stop(t)
	quietLog(t, "the version before", older)
	quietLog(t, "this version", newer)
	for id, n := range s.acknowledgements() {
		if n != 1 {
			t.Errorf("%s was delivered %d times", id, n)
		}
	}
	s.verify(t, secrets)
}

// What a migration may hold, so that nodes of the version before go on working on the new schema (docs/backup.md).
var contracts = []struct {
	rule string
	find *regexp.Regexp
}{
	{"drops nothing but indexes", regexp.MustCompile(`\bdrop\s+(table|column|view|sequence|function|constraint|default|schema|type|trigger)\b`)},
	{"renames nothing", regexp.MustCompile(`\brename\b`)},
	{"changes no type", regexp.MustCompile(`\balter\s+column\s+\S+\s+(set\s+data\s+)?type\b`)},
	{"forbids no null", regexp.MustCompile(`\bset\s+not\s+null\b`)},
	{"adds no constraint", regexp.MustCompile(`\badd\s+(constraint|check|unique|foreign|primary|exclude)\b|\bcreate\s+unique\s+index\b`)},
	{"adds no column that an insert must name", regexp.MustCompile(`\badd\s+(column\s+)?(if\s+not\s+exists\s+)?\w+\s[^,;]*\bnot\s+null(\s*[,;]|\s*$)`)},
}

// contraction is the first rule that the Up part of a migration breaks; empty: none.
func contraction(migration string) string {
	up, _, _ := strings.Cut(migration, "-- +goose Down")
	up = strings.ToLower(regexp.MustCompile(`--[^\n]*`).ReplaceAllString(up, ""))
	// On a table of its own making a migration may do what it likes.
	for _, made := range regexp.MustCompile(`(?s)create table [^;]*;`).FindAllString(up, -1) {
		up = strings.Replace(up, made, "", 1)
	}
	for _, c := range contracts {
		if c.find.MatchString(up) {
			return c.rule
		}
	}
	return ""
}

func TestMigrationsOnlyExpand(t *testing.T) {
	files, err := filepath.Glob("../../ledger/migrations/*.sql")
	if err != nil || len(files) < 2 {
		t.Fatalf("found %d migrations: %v", len(files), err)
	}
	slices.Sort(files)
	for _, file := range files[1:] { // before the first there was nothing
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if rule := contraction(string(text)); rule != "" {
			t.Errorf("%s breaks the rule that a migration %s: contract one version later", filepath.Base(file), rule)
		}
	}
	for sql, want := range map[string]string{
		"alter table n add column x text;":                                          "",
		"alter table n add column x text not null default '';":                      "",
		"create table m (id text not null);\ncreate unique index only_m on k (id);": "adds no constraint",
		"drop index a, b; -- drop table c":                                          "",
		"select 1;\n-- +goose Down\ndrop table c;":                                  "",
		"alter table n drop column x;":                                              "drops nothing but indexes",
		"ALTER TABLE n RENAME x TO y;":                                              "renames nothing",
		"alter table n alter column x type bigint;":                                 "changes no type",
		"alter table n alter column x set data type bigint;":                        "changes no type",
		"alter table n alter column x set not null;":                                "forbids no null",
		"alter table n add constraint c check (x > 0);":                             "adds no constraint",
		"alter table n add column x text not null;":                                 "adds no column that an insert must name",
		"alter table n add x text not null, add y text;":                            "adds no column that an insert must name",
	} {
		if got := contraction(sql); got != want {
			t.Errorf("%s: %q, want %q", sql, got, want)
		}
	}
}

// Five nodes start at once on an empty Postgres.
func TestNodesStartAtOnce(t *testing.T) {
	dir := scenario.DataDir(t)
	url := scenario.StartPostgres(t, filepath.Join(dir, "pg")).URL
	key := filepath.Join(dir, "master.key")
	if out, exit := notifyd(t, "keygen", "master", key); exit != 0 {
		t.Fatalf("keygen master: %s", out)
	}
	var nodes []*world
	for i := range 5 {
		e := engineBinary.LaunchServe(t, filepath.Join(dir, fmt.Sprintf("node-%d", i)), "--set=callers.required=false", "--set=drain_notice=0s",
			"--set=egress.allowed_networks=127.0.0.0/8", "--set=postgres.url="+url, "--set=ledger.master_key_file="+key)
		nodes = append(nodes, &world{Engine: e, t: t, ctx: t.Context()})
	}
	for _, w := range nodes {
		w.UntilReady(t)
	}
	s := newShops(t)
	s.answer(http.StatusOK, "well")
	s.register(nodes[0], "well")
	for i, w := range nodes {
		n := draft("well", "payout", fmt.Sprintf("node-%d", i))
		eventually(t, "the node knows the merchant", func() bool {
			_, err := w.trySubmit(n)
			return err == nil
		})
	}
	for _, w := range nodes {
		proven(t, w, len(nodes))
		w.Stop(t)
		quietLog(t, "a node", w)
	}
}
