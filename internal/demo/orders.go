package demo

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	notifydv1 "notifyd/proto/notifyd/v1"
)

// source is the payment service's name.
const source = "demo-pay"

// trade is the payload, much as a payment platform writes it: money in fen, the merchant's order number and ours.
type trade struct {
	NotifyType  string `json:"notify_type"`
	MerchantID  string `json:"mch_id"`
	AppID       string `json:"app_id"`
	OutTradeNo  string `json:"out_trade_no"` // the merchant's
	TradeNo     string `json:"trade_no"`     // the platform's
	TradeStatus string `json:"trade_status"`
	Currency    string `json:"currency"`
	TotalAmount int64  `json:"total_amount"`
	FeeAmount   int64  `json:"fee_amount,omitempty"`
	Subject     string `json:"subject"`
	Channel     string `json:"channel,omitempty"`
	BankCode    string `json:"bank_code,omitempty"`
	BankSerial  string `json:"bank_serial,omitempty"`
	BuyerID     string `json:"buyer_id,omitempty"`
	StoreID     string `json:"store_id,omitempty"`
	TerminalID  string `json:"terminal_id,omitempty"`
	ContractNo  string `json:"contract_no,omitempty"`
	Period      string `json:"period,omitempty"`
	PayeeName   string `json:"payee_name,omitempty"`
	PayeeCard   string `json:"payee_account,omitempty"`
	Account     string `json:"account,omitempty"`
	RefundNo    string `json:"refund_no,omitempty"`
	FailCode    string `json:"fail_code,omitempty"`
	FailMessage string `json:"fail_message,omitempty"`
	TradeTime   string `json:"gmt_create"`
	PaidTime    string `json:"gmt_payment,omitempty"`
}

// till makes orders up. One goroutine uses it.
type till struct {
	random *rand.Rand
	actors []*actor
	total  int // of all weights
}

func newTill(actors []*actor) *till {
	t := &till{random: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())), actors: actors}
	for _, a := range actors {
		t.total += a.weight
	}
	return t
}

// next is the notification of some merchant's next order.
func (t *till) next(now time.Time) *notifydv1.Notification {
	at := t.random.IntN(t.total)
	for _, a := range t.actors {
		if at -= a.weight; at < 0 {
			return t.order(a, now, "")
		}
	}
	return t.order(t.actors[0], now, "")
}

// burst is many orders of one merchant at once, under one batch id.
func (t *till) burst(merchantID string, size int, now time.Time) []*notifydv1.Notification {
	var out []*notifydv1.Notification
	for _, a := range t.actors {
		if a.ID != merchantID {
			continue
		}
		batch := fmt.Sprintf("%s-%s-%04d", strings.ToUpper(a.Scenes[0]), now.Format("20060102T150405"), t.random.IntN(10_000))
		for range size {
			out = append(out, t.order(a, now, batch))
		}
	}
	return out
}

var china = time.FixedZone("CST", 8*60*60)

const platformTime = "2006-01-02 15:04:05"

func (t *till) order(a *actor, now time.Time, batch string) *notifydv1.Notification {
	local := now.In(china)
	created := local.Add(-time.Duration(3+t.random.IntN(90)) * time.Second)
	scene := a.Scenes[t.weighted(len(a.Scenes))]
	p := trade{
		NotifyType: scene + "_status_sync", MerchantID: a.ID, AppID: appID(a.ID),
		OutTradeNo: strings.ToUpper(strings.ReplaceAll(a.ID, "-", "")[:4]) + created.Format("20060102150405") + t.digits(6),
		TradeNo:    local.Format("20060102") + "2200" + t.digits(16), TradeStatus: "TRADE_SUCCESS",
		Currency: "CNY", TotalAmount: t.price(a), Subject: a.product,
		TradeTime: created.Format(platformTime), PaidTime: local.Format(platformTime),
	}
	t.fill(&p, scene, local)
	payload, err := json.Marshal(p)
	if err != nil { // strings and integers only
		payload = []byte("{}")
	}
	return &notifydv1.Notification{
		Source: source, RequestId: p.TradeNo + "-" + strings.ToLower(p.TradeStatus), MerchantId: a.ID, AppId: p.AppID, Scene: scene,
		EventType: scene + "." + strings.ToLower(p.TradeStatus), OrderId: p.OutTradeNo, OrderStatus: p.TradeStatus, Terminal: true, StatusVersion: 1,
		BatchId: batch, Payload: string(payload), Amount: &notifydv1.Amount{Currency: "CNY", MinorUnits: p.TotalAmount},
		OccurredAt: timestamppb.New(now), OrderCreatedAt: timestamppb.New(created),
		Labels: map[string]string{"region": t.one("cn-east", "cn-north", "cn-south"), "channel": strings.ToLower(p.Channel)},
	}
}

// fill adds what goes with a scene.
func (t *till) fill(p *trade, scene string, now time.Time) {
	p.Channel = t.one("ALIPAY", "WECHAT", "UNIONPAY")
	switch scene {
	case "scan":
		p.FeeAmount = p.TotalAmount * 6 / 1000
		p.BuyerID, p.StoreID, p.TerminalID = "2088"+t.digits(12), "S"+t.digits(4), "POS"+t.digits(6)
	case "netbank":
		p.Channel, p.BankCode, p.BankSerial = "NETBANK", t.one("ICBC", "CMB", "CCB", "ABC", "BOC"), t.digits(18)
	case "withhold":
		p.ContractNo, p.Period = "HT"+t.digits(12), now.Format("2006-01")
		if t.random.IntN(8) == 0 {
			p.TradeStatus, p.PaidTime, p.FailCode, p.FailMessage = "TRADE_FAILED", "", "BALANCE_NOT_ENOUGH", "付款账户余额不足"
		}
	case "payout":
		p.Channel, p.BankCode = "BANKCARD", t.one("ICBC", "CMB", "CCB", "ABC")
		p.PayeeName, p.PayeeCard = t.one("张*", "王*", "李*", "陈*", "赵**")+t.one("明", "芳", "伟", "娜"), "6222****"+t.digits(4)
		if t.random.IntN(12) == 0 {
			p.TradeStatus, p.PaidTime, p.FailCode, p.FailMessage = "TRADE_FAILED", "", "PAYEE_ACCOUNT_ABNORMAL", "收款账户状态异常"
		}
	case "recharge":
		p.Account = "1" + t.one("38", "59", "86") + "****" + t.digits(4)
	case "refund":
		p.RefundNo, p.TradeStatus = "RF"+t.digits(14), "REFUND_SUCCESS"
	}
}

// appID is a merchant's, always the same.
func appID(merchantID string) string {
	h := fnv.New64a()
	h.Write([]byte(merchantID)) // a hash never returns an error
	return fmt.Sprintf("wx%016x", h.Sum64())
}

// weighted picks the first of many most of the time.
func (t *till) weighted(n int) int {
	if n == 1 || t.random.IntN(5) > 0 {
		return 0
	}
	return 1 + t.random.IntN(n-1)
}

func (t *till) price(a *actor) int64 { return a.prices[0] + t.random.Int64N(a.prices[1]-a.prices[0]+1) }

func (t *till) one(of ...string) string { return of[t.random.IntN(len(of))] }

func (t *till) digits(n int) string {
	out := make([]byte, n)
	for i := range out {
		out[i] = "0123456789"[t.random.IntN(10)]
	}
	return string(out)
}
