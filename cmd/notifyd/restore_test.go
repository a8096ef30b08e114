package main_test

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/internal/scenario"
	notifydv1 "notifyd/proto/notifyd/v1"
)

const restoredEach = 3 // notifications of a group

// restoreFlags make the sweep quick, and leave own queues to paused merchants.
var restoreFlags = []string{
	"--set=callers.required=false", "--set=drain_notice=0s", "--set=egress.allowed_networks=127.0.0.0/8",
	"--set=retry.sweep_every=200ms", "--set=retry.grace=1s", "--set=dispatcher.gate.consecutive_failures=1000", "--set=dispatcher.gate.least_attempts=100000",
}

// shops are merchants that answer by the first part of their path, and count what they have acknowledged.
type shops struct {
	*scenario.Merchant
	mu           sync.Mutex
	status       map[string]int // 0: the answer waits for the test's end, and is a failure
	acknowledged map[string]int // by id
	end          chan struct{}
}

func newShops(t *testing.T) *shops {
	s := &shops{Merchant: scenario.NewMerchant(t), status: map[string]int{}, acknowledged: map[string]int{}, end: make(chan struct{})}
	t.Cleanup(func() { close(s.end) }) // before the server waits for its handlers
	s.Answer(func(w http.ResponseWriter, seen scenario.Seen) {
		s.mu.Lock()
		defer s.mu.Unlock()
		status := s.status[filepath.Base(seen.Path)]
		switch status {
		case 0:
			s.mu.Unlock()
			<-s.end
			s.mu.Lock()
			status = http.StatusServiceUnavailable
		case http.StatusOK:
			s.acknowledged[seen.ID]++
		}
		w.WriteHeader(status)
	})
	return s
}

func (s *shops) answer(status int, names ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		s.status[name] = status
	}
}

func (s *shops) acknowledgements() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.acknowledged)
}

// register makes a merchant of each name, and returns their signing secrets.
func (s *shops) register(w *world, names ...string) map[string]string {
	secrets := map[string]string{}
	for _, name := range names {
		secrets[name] = w.merchant(name, s.URL+"/"+name, func(m *notifydv1.Merchant) {
			m.Schedule = &notifydv1.Schedule{Gaps: slices.Repeat([]*durationpb.Duration{durationpb.New(2 * time.Second)}, 50)}
		})
	}
	return secrets
}

func (w *world) pause(names ...string) {
	w.t.Helper()
	for _, id := range names {
		if _, err := w.Merchants.PauseMerchant(w.ctx, connect.NewRequest(&notifydv1.PauseMerchantRequest{Id: id, Reason: "test"})); err != nil {
			w.t.Fatal(err)
		}
	}
}

func (w *world) resume(names ...string) {
	w.t.Helper()
	for _, id := range names {
		if _, err := w.Merchants.ResumeMerchant(w.ctx, connect.NewRequest(&notifydv1.ResumeMerchantRequest{Id: id})); err != nil {
			w.t.Fatal(err)
		}
	}
}

// day submits a group of notifications to each merchant.
func (w *world) day(name string, merchants ...string) map[string][]string {
	w.t.Helper()
	groups := map[string][]string{}
	for _, m := range merchants {
		for i := range restoredEach {
			groups[name+"-"+m] = append(groups[name+"-"+m], w.submit(draft(m, "payout", fmt.Sprintf("%s-%s-%d", name, m, i))).Id)
		}
	}
	return groups
}

func (w *world) untilAll(state notifydv1.State, groups ...[]string) {
	w.t.Helper()
	ids := slices.Concat(groups...)
	var first *notifydv1.Notification
	w.t.Cleanup(func() {
		if w.t.Failed() && len(ids) > 0 {
			w.t.Logf("the first of %d that are not %s: %v", len(ids), state, first)
		}
	})
	eventually(w.t, fmt.Sprintf("%d notifications are %s", len(ids), state), func() bool {
		ids = slices.DeleteFunc(ids, func(id string) bool { return w.get(id).Notification.State == state })
		if len(ids) > 0 {
			first = w.get(ids[0]).Notification
		}
		return len(ids) == 0
	})
}

// untilShown waits until a merchant's notifications have rows.
func (w *world) untilShown(merchant string, n int) {
	w.t.Helper()
	eventually(w.t, merchant+"'s notifications are shown", func() bool {
		list, err := w.Notifications.ListNotifications(w.ctx, connect.NewRequest(&notifydv1.ListNotificationsRequest{Filter: &notifydv1.NotificationFilter{MerchantId: merchant}}))
		if err != nil {
			w.t.Fatal(err)
		}
		return len(list.Msg.Notifications) == n
	})
}

func copyFolder(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil { // Postgres may run as another user below it
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", from, err, out)
	}
}

// postgresEnds waits for the end of the Postgres of an engine that was killed.
func postgresEnds(t *testing.T, dataDir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dataDir, "postgres", "*", "postmaster.pid"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no postmaster.pid in %s: %v", dataDir, err)
	}
	content, err := os.ReadFile(files[0])
	if err != nil {
		return // it has ended
	}
	pid, err := strconv.Atoi(strings.TrimSpace(strings.SplitN(string(content), "\n", 2)[0]))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "postgres has ended", func() bool { return syscall.Kill(pid, 0) != nil })
}

// fate is what becomes of a group after a restore.
type fate struct {
	Told    int // for the first time
	Again   int // acknowledged before, and sent again
	Missing int // listed by the proof
	Unknown int // not on record
}

// twoDays is what happened before the restore: a backup of yesterday, and today's data folder.
type twoDays struct {
	*shops
	yesterday, today string
	accepted         map[string][]string // ids by group
	told             map[string]int      // acknowledgements by id
}

// live lives the two days. Yesterday ends with a crash, so that its backup has work in the shards too; today ends cleanly.
func live(t *testing.T) *twoDays {
	t.Helper()
	dir := scenario.DataDir(t)
	d := &twoDays{shops: newShops(t), yesterday: filepath.Join(dir, "yesterday"), today: filepath.Join(dir, "today")}
	d.answer(http.StatusOK, "well", "resumed", "paused")
	d.answer(http.StatusInternalServerError, "healing", "failing", "faltering")

	w := serve(t, d.today, append(restoreFlags, "--set=async.in_flight=1", "--set=async.depth=1", "--set=async.in_hand=2", "--set=async.patience=1h")...) // what hangs keeps the rest in its shard
	d.register(w, "well", "healing", "failing", "hanging", "resumed", "paused", "faltering")
	w.pause("resumed", "paused", "faltering")
	d.accepted = w.day("y", "well", "healing", "failing", "resumed", "paused", "faltering")
	w.untilAll(notifydv1.State_STATE_DELIVERED, d.accepted["y-well"])
	w.untilAll(notifydv1.State_STATE_RETRYING, d.accepted["y-healing"], d.accepted["y-failing"])
	w.untilAll(notifydv1.State_STATE_HELD, d.accepted["y-resumed"], d.accepted["y-paused"], d.accepted["y-faltering"])
	const inHand, pulled = 2, 16
	for i := range inHand + 2*pulled { // NATS has never handed out the last of them
		d.accepted["y-hanging"] = append(d.accepted["y-hanging"], w.submit(draft("hanging", "payout", fmt.Sprintf("y-hanging-%d", i))).Id)
	}
	w.untilShown("hanging", inHand)
	w.Kill()
	postgresEnds(t, d.today)
	for _, part := range []string{"nats", "postgres"} {
		copyFolder(t, filepath.Join(d.today, part), filepath.Join(d.yesterday, part))
	}

	d.answer(http.StatusOK, "hanging", "healing")
	w = serve(t, d.today, restoreFlags...)
	w.resume("resumed", "faltering")
	w.untilAll(notifydv1.State_STATE_RETRYING, d.accepted["y-faltering"])
	w.pause("faltering") // with an attempt on record
	maps.Copy(d.accepted, w.day("t", "well", "healing", "failing", "resumed", "paused", "faltering"))
	for _, group := range []string{"y-healing", "y-resumed", "y-hanging", "t-well", "t-healing", "t-resumed"} {
		w.untilAll(notifydv1.State_STATE_DELIVERED, d.accepted[group])
	}
	w.untilAll(notifydv1.State_STATE_HELD, d.accepted["y-paused"], d.accepted["y-faltering"], d.accepted["t-paused"], d.accepted["t-faltering"])
	w.untilAll(notifydv1.State_STATE_RETRYING, d.accepted["t-failing"])
	w.Stop(t)
	d.answer(http.StatusOK, "failing", "faltering")
	d.told = d.acknowledgements()
	return d
}

// restore starts an engine on a Postgres and a NATS of different days.
func (d *twoDays) restore(t *testing.T, postgres, nats string, flags ...string) *world {
	t.Helper()
	to := scenario.DataDir(t)
	copyFolder(t, filepath.Join(postgres, "postgres"), filepath.Join(to, "postgres"))
	copyFolder(t, filepath.Join(nats, "nats"), filepath.Join(to, "nats"))
	copyFolder(t, filepath.Join(d.today, "master.key"), filepath.Join(to, "master.key"))
	return serve(t, to, append(restoreFlags, flags...)...)
}

// fates are what has become of each group since then; groups to which nothing happens are left out.
func (d *twoDays) fates(w *world, since map[string]int) map[string]fate {
	fates := map[string]fate{}
	missing, now := w.prove().MissingIds, d.acknowledgements()
	for group, ids := range d.accepted {
		var f fate
		for _, id := range ids {
			switch {
			case d.told[id] == 0 && now[id] > since[id]:
				f.Told++
			case d.told[id] > 0 && now[id] > since[id]:
				f.Again++
			}
			_, err := w.Notifications.GetNotification(w.ctx, connect.NewRequest(&notifydv1.GetNotificationRequest{Id: id}))
			if code(err) == connect.CodeNotFound {
				f.Unknown++
			}
			if slices.Contains(missing, id) {
				f.Missing++
			}
		}
		if f != (fate{}) {
			fates[group] = f
		}
	}
	return fates
}

// Backups of different days beside each other (docs/backup.md).
func TestRestore(t *testing.T) {
	d := live(t)
	told, again, missing, unknown := fate{Told: restoredEach}, fate{Again: restoredEach}, fate{Missing: restoredEach}, fate{Unknown: restoredEach}
	for _, c := range []struct {
		name, postgres, nats string
		want                 map[string]fate
		apart                []string // groups that are looked at apart, or whose fate depends on the moment of the crash
	}{
		{"yesterday's Postgres and today's NATS", d.yesterday, d.today, map[string]fate{
			"y-healing": again, "y-resumed": missing, "y-failing": told, "y-paused": told,
			"t-well": unknown, "t-healing": unknown, "t-resumed": unknown, "t-failing": told, "t-paused": told, "t-faltering": told,
		}, []string{"y-faltering", "y-hanging"}},
		{"today's Postgres and yesterday's NATS", d.today, d.yesterday, map[string]fate{
			"y-failing": told, "t-failing": told, "y-paused": told, "t-paused": missing, "y-faltering": missing, "t-faltering": missing,
		}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			since := d.acknowledgements()
			w := d.restore(t, c.postgres, c.nats, "--restored")
			w.resume("resumed", "paused", "faltering")
			var got map[string]fate
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("what became of each group (-want +got):\n%s", cmp.Diff(c.want, got))
				}
			})
			eventually(t, "each group has its fate", func() bool {
				got = d.fates(w, since)
				for _, group := range c.apart {
					delete(got, group)
				}
				return cmp.Equal(got, c.want)
			})
			if c.postgres == d.yesterday {
				t.Run("own queues that know of more attempts than the ledger", func(t *testing.T) {
					scenario.Within(t, 15*time.Second, "y-faltering is told", func() bool { return d.fates(w, since)["y-faltering"] == told })
				})
			}
			w.Stop(t)
		})
	}
}
