package demo

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"notifyd/client/verify"
	notifydv1 "notifyd/proto/notifyd/v1"
)

// Merchant is one that the demo plays.
type Merchant struct {
	ID, Name string
	Plays    string // how it behaves, in a few words
	Scenes   []string
}

// String is a line for a banner.
func (m Merchant) String() string {
	return fmt.Sprintf("%-16s %s: %s (%s)", m.ID, m.Name, m.Plays, strings.Join(m.Scenes, ", "))
}

// actor is a merchant with its part.
type actor struct {
	Merchant
	weight  int                         // its share of the trickle
	product string                      // what it sells
	prices  [2]int64                    // from, to, in fen
	set     func(m *notifydv1.Merchant) // settings beyond id, name, notify URL and secret; may be nil
	answer  func(n uint64) reply        // to its nth verified call

	secret   string
	verifier *verify.Verifier
	calls    atomic.Uint64
}

// reply is what a merchant does about a call. The zero value is 200 without a body.
type reply struct {
	wait   time.Duration
	reset  bool // RST instead of an answer
	status int
	kind   string // content type
	body   string
}

// cast is who plays what. The names are invented.
func cast() []*actor {
	return []*actor{
		{Merchant: Merchant{"lanshan-coffee", "岚山咖啡 Lanshan Coffee", "healthy", []string{"scan", "refund"}}, weight: 10, product: "拿铁 (大杯)", prices: [2]int64{1800, 5600}, answer: accepts},
		{Merchant: Merchant{"yunhe-fresh", "云禾生鲜 Yunhe Fresh", "healthy", []string{"scan", "refund"}}, weight: 10, product: "Fresh groceries", prices: [2]int64{990, 25800}, answer: accepts},
		{Merchant: Merchant{"beidu-air", "北渡航空 Beidu Air", "healthy", []string{"netbank", "refund"}}, weight: 5, product: "PVG-CTU economy", prices: [2]int64{42000, 268000}, answer: accepts},
		{Merchant: Merchant{"haitong-gas", "海桐燃气 Haitong Gas", "healthy", []string{"withhold"}}, weight: 6, product: "天然气月账单", prices: [2]int64{3500, 31200}, answer: accepts},
		{Merchant: Merchant{"maple-payroll", "Maple Payroll 枫叶薪酬", "healthy, pays out in batches", []string{"payout"}}, weight: 5, product: "Salary", prices: [2]int64{300000, 1850000}, answer: accepts},
		{Merchant: Merchant{"xingwan-games", "星玩游戏 Xingwan Games", "wants to answer exactly success, and does", []string{"recharge"}}, weight: 6, product: "648 星钻", prices: [2]int64{600, 64800}, set: wantsSuccess, answer: saysSuccess},
		{Merchant: Merchant{"oldtown-books", "老城书店 Old Town Books", "slow: answers after 1 to 3 s", []string{"netbank"}}, weight: 3, product: "Books", prices: [2]int64{2900, 38800}, answer: isSlow},
		{Merchant: Merchant{"wanli-express", "万里物流 Wanli Express", "fails now and then: HTTP 500 to 1 call in 4", []string{"payout", "refund"}}, weight: 5, product: "Freight", prices: [2]int64{1200, 96000}, answer: failsNowAndThen},
		{Merchant: Merchant{"metro-parking", "都会停车 Metro Parking", "flaky: resets 1 connection in 3", []string{"withhold"}}, weight: 4, product: "停车费", prices: [2]int64{500, 6000}, answer: resets},
		{Merchant: Merchant{"nightowl-cinema", "夜枭影院 Night Owl Cinema", "down: nothing listens at its notify URL", []string{"recharge"}}, weight: 1, product: "Member card", prices: [2]int64{10000, 50000}, set: isDown, answer: accepts},
		{Merchant: Merchant{"jinshi-gym", "金石健身 Jinshi Gym", "answers wrongly: a login page with HTTP 200", []string{"withhold"}}, weight: 1, product: "月卡续费", prices: [2]int64{19900, 39900}, set: wantsSuccessSoon, answer: showsLogin},
		{Merchant: Merchant{"campus-card", "校园一卡通 Campus Card", "limited to 1 call a second, gets bursts", []string{"recharge"}}, weight: 3, product: "Meal card top-up", prices: [2]int64{5000, 30000}, set: isLimited, answer: accepts},
		{Merchant: Merchant{"riverside-hotel", "河畔酒店 Riverside Hotel", "late: answers 1 call in 3 after 11 s", []string{"refund"}}, weight: 2, product: "Room deposit", prices: [2]int64{20000, 120000}, answer: isLate},
	}
}

func wantsSuccess(m *notifydv1.Merchant) {
	m.Contract.Acknowledgement = &notifydv1.Acknowledgement{Statuses: []uint32{http.StatusOK}, BodyExact: "success"}
}

// wantsSuccessSoon gives up early, so that there are dead letters to look at.
func wantsSuccessSoon(m *notifydv1.Merchant) {
	wantsSuccess(m)
	m.Schedule = &notifydv1.Schedule{Gaps: []*durationpb.Duration{durationpb.New(5 * time.Second), durationpb.New(15 * time.Second), durationpb.New(time.Minute)}}
}

// isDown has the discard port for an address: it is below the ports that anything gets by chance.
func isDown(m *notifydv1.Merchant) {
	m.NotifyUrl = "http://127.0.0.1:9/notify"
	m.Schedule = &notifydv1.Schedule{Name: "10s-x5"}
}

func isLimited(m *notifydv1.Merchant) { m.Limits = &notifydv1.Limits{RatePerSecond: 1} }

func accepts(uint64) reply {
	return reply{kind: "application/json", body: `{"code":"SUCCESS","message":"OK"}`}
}

func saysSuccess(uint64) reply { return reply{kind: "text/plain", body: "success"} }

func isSlow(n uint64) reply {
	a := accepts(n)
	a.wait = time.Second + rand.N(2*time.Second)
	return a
}

func isLate(n uint64) reply {
	a := accepts(n)
	if n%3 == 0 {
		a.wait = 11 * time.Second
	}
	return a
}

func failsNowAndThen(n uint64) reply {
	if n%4 != 0 {
		return accepts(n)
	}
	return reply{status: http.StatusInternalServerError, kind: "application/json", body: `{"code":"SYSTEM_ERROR","message":"could not get a database connection: pool exhausted"}`}
}

func resets(n uint64) reply {
	if n%3 == 0 {
		return reply{reset: true}
	}
	return accepts(n)
}

func showsLogin(uint64) reply {
	return reply{kind: "text/html; charset=utf-8", body: "<!DOCTYPE html>\n<html lang=\"zh\"><head><title>登录 - 金石健身商户后台</title></head>\n" +
		"<body><h1>请先登录</h1><form action=\"/login\" method=\"post\"><input name=\"username\"><input name=\"password\" type=\"password\"><button>登录</button></form></body></html>\n"}
}

// path is where a merchant is told.
func (a *actor) path() string { return "/" + a.ID + "/notify" }

func (a *actor) merchant(base string) *notifydv1.Merchant {
	m := &notifydv1.Merchant{
		Id: a.ID, Name: a.Name, NotifyUrl: base + a.path(),
		Contract: &notifydv1.Contract{Signer: &notifydv1.Signer{Secret: a.secret}},
	}
	if a.set != nil {
		a.set(m)
	}
	return m
}

func (d *Demo) handler() http.Handler {
	mux := http.NewServeMux()
	for _, a := range d.actors {
		mux.Handle("POST "+a.path(), a)
	}
	return mux
}

// ServeHTTP is the merchant's side of a call: read, verify, answer.
func (a *actor) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if _, err := a.verifier.Verify(r); err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	says := a.answer(a.calls.Add(1))
	if says.wait > 0 && !pause(r.Context(), says.wait) {
		panic(http.ErrAbortHandler) // the demo ends, or nobody waits for the answer: hang up
	}
	if says.reset && reset(w) {
		return
	}
	w.Header().Set("Content-Type", says.kind)
	if says.status != 0 {
		w.WriteHeader(says.status)
	}
	_, _ = io.WriteString(w, says.body) // who hung up does not want it
}

// reset closes the connection so that the other side sees an RST.
func reset(w http.ResponseWriter) bool {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return false
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // without it the close is an ordinary one, which is bad enough
	}
	_ = conn.Close()
	return true
}
