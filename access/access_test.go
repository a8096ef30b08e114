package access_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"notifyd/access"
)

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

type subject = access.Subject

func block(s subject, mode access.Mode) *access.Rule {
	return &access.Rule{ID: access.RuleID(s, access.EffectBlock), Subject: s, Effect: access.EffectBlock, Mode: mode}
}

func allow(s subject) *access.Rule {
	return &access.Rule{ID: access.RuleID(s, access.EffectAllow), Subject: s, Effect: access.EffectAllow}
}

func until(r *access.Rule, at time.Time) *access.Rule {
	r.ExpiresAt = at
	return r
}

func removed(r *access.Rule) *access.Rule {
	r.Removed = true
	return r
}

func registryOf(rules ...*access.Rule) *access.Registry {
	r := access.NewRegistry()
	for i, rule := range rules {
		rule.Version = int64(i) + 1
	}
	r.Learn(rules...)
	return r
}

// What the rules say of source pay's payout for merchant m.
func TestPrecedence(t *testing.T) {
	m, mPayout, everyMerchant := subject{access.KindMerchant, "m", ""}, subject{access.KindMerchant, "m", "payout"}, subject{access.KindMerchant, "", ""}
	pay, payPayout, everySource := subject{access.KindSource, "pay", ""}, subject{access.KindSource, "pay", "payout"}, subject{access.KindSource, "", ""}
	const reject, hold, record = access.ModeReject, access.ModeHold, access.ModeRecordOnly
	for name, c := range map[string]struct {
		rules []*access.Rule
		want  string // the rule's id and mode
	}{
		"no rules":                              {nil, ""},
		"another merchant's":                    {[]*access.Rule{block(subject{access.KindMerchant, "n", ""}, hold)}, ""},
		"another scene's":                       {[]*access.Rule{block(subject{access.KindMerchant, "m", "scan"}, hold)}, ""},
		"a merchant is no source":               {[]*access.Rule{block(subject{access.KindSource, "m", ""}, hold)}, ""},
		"merchant":                              {[]*access.Rule{block(m, hold)}, "merchant/m/block hold"},
		"source":                                {[]*access.Rule{block(pay, reject)}, "source/pay/block reject"},
		"merchant in a scene":                   {[]*access.Rule{block(mPayout, record)}, "merchant/m/payout/block record_only"},
		"block beats allow":                     {[]*access.Rule{allow(m), block(m, hold)}, "merchant/m/block hold"},
		"block beats allow in a scene":          {[]*access.Rule{allow(mPayout), block(mPayout, hold)}, "merchant/m/payout/block hold"},
		"narrower allow beats wider block":      {[]*access.Rule{block(m, reject), allow(mPayout)}, ""},
		"narrower block beats wider allow":      {[]*access.Rule{allow(m), block(mPayout, hold)}, "merchant/m/payout/block hold"},
		"narrower block, though milder":         {[]*access.Rule{block(m, reject), block(mPayout, hold)}, "merchant/m/payout/block hold"},
		"allow-only":                            {[]*access.Rule{block(everyMerchant, reject)}, "merchant/block reject"},
		"allow-only, allowed":                   {[]*access.Rule{block(everyMerchant, reject), allow(m)}, ""},
		"allow-only, allowed in this scene":     {[]*access.Rule{block(everyMerchant, reject), allow(mPayout)}, ""},
		"allow-only, allowed in another":        {[]*access.Rule{block(everyMerchant, hold), allow(subject{access.KindMerchant, "m", "scan"})}, "merchant/block hold"},
		"allow-only, blocked":                   {[]*access.Rule{block(everyMerchant, hold), block(m, record)}, "merchant/m/block record_only"},
		"allow-only of sources":                 {[]*access.Rule{block(everySource, hold), allow(m)}, "source/block hold"},
		"an allowed merchant's blocked source":  {[]*access.Rule{allow(m), block(pay, hold)}, "source/pay/block hold"},
		"an allowed source's blocked merchant":  {[]*access.Rule{allow(payPayout), block(m, hold)}, "merchant/m/block hold"},
		"both block: rejecting is stricter":     {[]*access.Rule{block(m, record), block(pay, reject)}, "source/pay/block reject"},
		"both block: recording is than holding": {[]*access.Rule{block(m, record), block(pay, hold)}, "merchant/m/block record_only"},
		"both block alike: the merchant's":      {[]*access.Rule{block(m, hold), block(pay, hold)}, "merchant/m/block hold"},
		"expired now":                           {[]*access.Rule{until(block(m, hold), noon)}, ""},
		"expires later":                         {[]*access.Rule{until(block(m, hold), noon.Add(time.Microsecond))}, "merchant/m/block hold"},
		"an expired one uncovers the wider":     {[]*access.Rule{block(m, reject), until(allow(mPayout), noon)}, "merchant/m/block reject"},
		"an expired one uncovers its allow":     {[]*access.Rule{block(everyMerchant, hold), until(block(m, hold), noon), allow(m)}, ""},
		"removed":                               {[]*access.Rule{removed(block(m, hold))}, ""},
	} {
		got := ""
		if r := registryOf(c.rules...).Judge("m", "pay", "payout", noon); r != nil {
			got = r.ID + " " + r.Mode.String()
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// Whatever the rules are, the registry says what a reading of the promise says: sort the live rules that are about it by how
// narrow they are, blocks first; the first one decides; of two kinds that block the stricter.
func TestPrecedenceOfAnyRules(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 11))
	ids, scenes := []string{"a", "b", ""}, []string{"", "payout", "scan"}
	blocked := 0
	for round := range 20_000 {
		byID := map[string]*access.Rule{}
		for range random.IntN(9) {
			s := subject{access.Kind(1 + random.IntN(2)), ids[random.IntN(len(ids))], scenes[random.IntN(len(scenes))]}
			if s.ID == "" {
				s.Scene = ""
			}
			r := allow(s)
			if random.IntN(3) > 0 {
				r = block(s, access.Mode(1+random.IntN(3)))
			}
			if random.IntN(4) == 0 {
				until(r, noon.Add(time.Duration(random.IntN(3)-1)*time.Second))
			}
			r.Removed = random.IntN(8) == 0
			byID[r.ID] = r
		}
		var rules []*access.Rule
		for _, r := range byID {
			rules = append(rules, r)
		}
		merchantID, sourceID, scene := ids[random.IntN(2)], ids[random.IntN(2)], scenes[1+random.IntN(2)]
		got, want := registryOf(rules...).Judge(merchantID, sourceID, scene, noon), byTheBook(rules, merchantID, sourceID, scene)
		if got != want {
			t.Fatalf("round %d: %s, want %s, of %s", round, idOf(got), idOf(want), idsOf(rules))
		}
		if got != nil {
			blocked++
		}
	}
	if blocked < 2000 || blocked > 18_000 {
		t.Errorf("%d of 20000 rounds block: this test tests little", blocked)
	}
}

func byTheBook(rules []*access.Rule, merchantID, sourceID, scene string) *access.Rule {
	var verdict *access.Rule
	for kind, id := range map[access.Kind]string{access.KindMerchant: merchantID, access.KindSource: sourceID} {
		var about []*access.Rule
		for _, r := range rules {
			if s := r.Subject; s.Kind == kind && (s.ID == id && (s.Scene == scene || s.Scene == "") || s.ID == "") && !r.Removed && (r.ExpiresAt.IsZero() || noon.Before(r.ExpiresAt)) {
				about = append(about, r)
			}
		}
		if len(about) == 0 {
			continue
		}
		first := slices.MinFunc(about, func(a, b *access.Rule) int { return weight(a) - weight(b) })
		if first.Effect == access.EffectAllow {
			continue
		}
		strict := map[access.Mode]int{access.ModeHold: 1, access.ModeRecordOnly: 2, access.ModeReject: 3}
		if verdict == nil || strict[first.Mode] > strict[verdict.Mode] || strict[first.Mode] == strict[verdict.Mode] && kind == access.KindMerchant {
			verdict = first
		}
	}
	return verdict
}

func weight(r *access.Rule) int {
	w := int(r.Effect)
	switch {
	case r.Subject.ID == "":
		return w + 20
	case r.Subject.Scene == "":
		return w + 10
	}
	return w
}

func idOf(r *access.Rule) string {
	if r == nil {
		return "nothing"
	}
	return r.ID
}

func idsOf(rules []*access.Rule) (ids []string) {
	for _, r := range rules {
		ids = append(ids, fmt.Sprintf("%s %s removed=%t %s", r.ID, r.Mode, r.Removed, r.ExpiresAt))
	}
	return ids
}

// Ids are told apart, whatever is in them.
func TestRuleIDsAreDistinct(t *testing.T) {
	seen := map[string]subject{}
	for _, kind := range []access.Kind{access.KindMerchant, access.KindSource} {
		for _, id := range []string{"", "a", "a/b", "a/block", "block", "a%2Fb", "茶", "b"} {
			for _, scene := range []string{"", "b", "block", "allow"} {
				s := subject{kind, id, scene}
				if id == "" && scene != "" {
					continue
				}
				for _, effect := range []access.Effect{access.EffectBlock, access.EffectAllow} {
					name := access.RuleID(s, effect)
					if other, taken := seen[name]; taken {
						t.Errorf("%v and %v are both %s", s, other, name)
					}
					seen[name] = s
				}
			}
		}
	}
}

// An older version never replaces a newer one, and a removed rule stays removed.
func TestLearn(t *testing.T) {
	r := access.NewRegistry()
	if r.Learned() || !access.Nobody().Learned() {
		t.Error("learned before it was told, or not after")
	}
	m := subject{access.KindMerchant, "m", ""}
	old, newer := block(m, access.ModeHold), removed(block(m, access.ModeHold))
	old.Version, newer.Version = 3, 5
	r.Learn(newer)
	r.Learn(old)
	if r.Judge("m", "pay", "scan", noon) != nil || r.Version() != 5 || len(r.List()) != 0 || r.Get("merchant/m/block") != newer {
		t.Errorf("version %d, rules %v", r.Version(), r.List())
	}
	again := until(block(m, access.ModeReject), noon)
	again.Version = 6
	r.Learn(again)
	if r.Judge("m", "pay", "scan", noon.Add(-time.Second)) != again || len(r.List()) != 1 {
		t.Error("put again, it does not hold")
	}
	for name, c := range map[string]struct {
		after, until time.Duration
		want         bool
	}{
		"before": {-2 * time.Second, -time.Second, false}, "just then": {-time.Second, 0, true}, "in between": {-time.Second, time.Second, true}, "after": {0, time.Second, false},
	} {
		if got := r.ExpiredBetween(noon.Add(c.after), noon.Add(c.until)); got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

func BenchmarkJudge(b *testing.B) {
	var rules []*access.Rule
	for i := range 10_000 {
		rules = append(rules, block(subject{access.KindMerchant, fmt.Sprintf("m-%d", i), ""}, access.ModeHold))
	}
	for name, r := range map[string]*access.Registry{"no rules": access.Nobody(), "ten thousand": registryOf(rules...)} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				r.Judge("healthy", "pay", "payout", noon)
			}
		})
	}
}
