package settings_test

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"go.yaml.in/yaml/v3"

	"notifyd/internal/settings"
)

type config struct {
	Intake  listen        `yaml:"intake"`
	DataDir string        `yaml:"data_dir"`
	Drain   time.Duration `yaml:"drain"`
	Router  struct {
		Rules []routing `yaml:"rules,omitempty"`
	} `yaml:"router"`
	Async struct {
		Depth       int    `yaml:"depth"`
		Shards      uint32 `yaml:"shards"`
		StreamBytes int64  `yaml:"stream_bytes"`
	} `yaml:"async"`
	Retry struct {
		Window time.Duration `yaml:"window"`
		Jitter float64       `yaml:"jitter"`
	} `yaml:"retry"`
	Egress struct {
		Networks []netip.Prefix     `yaml:"allowed_networks"`
		Proxies  map[string]proxy   `yaml:"proxies"`
		Weights  map[string]float64 `yaml:"weights"`
		Pin      *int8              `yaml:"pin"`
		Hidden   func()             `yaml:"-"`
	} `yaml:"egress"`
	NATS struct {
		SyncAlways bool     `yaml:"sync_always"`
		URL        string   `yaml:"url" secret:"url"`
		Password   string   `yaml:"password" secret:"true"`
		Keys       []string `yaml:"keys" secret:"true"`
		Window     span     `yaml:"window"`
		Mood       mood     `yaml:"mood"`
		Token      mood     `yaml:"token" secret:"true"`
	} `yaml:"nats"`
	limits `yaml:",inline"`
}

type limits struct {
	Places int `yaml:"places"`
}

type listen struct {
	Listen string `yaml:"listen"`
}

type routing struct {
	Name   string            `yaml:"name"`
	Scenes []string          `yaml:"scenes,omitempty"`
	Labels map[string]string `yaml:"labels,omitempty"`
	Amount *amount           `yaml:"amount,omitempty"`
	After  time.Duration     `yaml:"after,omitempty"`
}

type amount struct {
	Currency string `yaml:"currency"`
	Low      *int64 `yaml:"low"`
}

type proxy struct {
	URL      string `yaml:"url"`
	Password string `yaml:"password" secret:"true"`
}

// span reads "08:00-20:00" by its own UnmarshalYAML.
type span struct{ from, to string }

func (s *span) UnmarshalYAML(n *yaml.Node) error {
	var text string
	if err := n.Decode(&text); err != nil {
		return err
	}
	var ok bool
	if s.from, s.to, ok = strings.Cut(text, "-"); !ok {
		return fmt.Errorf("%q: must be from-to", text)
	}
	return nil
}

func (s span) MarshalYAML() (any, error) { return s.from + "-" + s.to, nil }

// mood reads itself from text.
type mood string

func (m *mood) UnmarshalText(text []byte) error {
	if string(text) == "bad" {
		return fmt.Errorf("%q is not wanted", text)
	}
	*m = mood(text)
	return nil
}

func defaults() config {
	var c config
	c.Intake.Listen, c.DataDir, c.Drain = "127.0.0.1:8700", "/var/lib/notifyd", 25*time.Second
	c.Async.Depth, c.Async.StreamBytes = 512, 8<<30
	c.Retry.Window, c.Retry.Jitter = 10*time.Minute, 0.5
	c.Egress.Networks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}
	c.Egress.Weights = map[string]float64{"direct": 1}
	c.NATS.Window = span{"08:00", "20:00"}
	return c
}

var compare = cmp.Options{
	cmp.AllowUnexported(config{}, span{}), cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty(),
	cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".Hidden" }, cmp.Ignore()),
}

func file(text string) settings.Sources {
	return settings.Sources{FileName: "notifyd.yaml", File: []byte(text), Prefix: "NOTIFYD_"}
}

// What is wrong with a file is said in one line each, which names place, key, value and rule; and nothing is changed.
func TestBrokenFiles(t *testing.T) {
	for name, test := range map[string]struct {
		yaml string
		says []string
	}{
		"unknown key":            {"retry:\n  windw: 5m", []string{"notifyd.yaml:2: retry.windw: unknown key; did you mean retry.window?"}},
		"unknown section":        {"asink: {depth: 3}", []string{"notifyd.yaml:1: asink: unknown key; did you mean async?"}},
		"unknown and far":        {"telemetry: {depth: 3}", []string{"notifyd.yaml:1: telemetry: unknown key"}},
		"unknown and odd":        {"? \"a\\nb\"\n: 1", []string{`notifyd.yaml:1: "a\nb": unknown key`}},
		"unknown in an element":  {"router:\n  rules:\n    - name: a\n      sceens: [x]", []string{"notifyd.yaml:4: router.rules[0].sceens: unknown key; did you mean router.rules[0].scenes?"}},
		"hidden":                 {"egress: {hidden: 1}", []string{"notifyd.yaml:1: egress.hidden: unknown key"}},
		"duration":               {"\ndrain: soon", []string{`notifyd.yaml:2: drain: "soon": must be a duration such as 10s or 5m`}},
		"duration without unit":  {"drain: 30", []string{`notifyd.yaml:1: drain: "30": must be a duration such as 10s or 5m`}},
		"number":                 {"async: {depth: many}", []string{`notifyd.yaml:1: async.depth: "many": must be a whole number`}},
		"fraction":               {"async: {depth: 1.5}", []string{`notifyd.yaml:1: async.depth: "1.5": must be a whole number`}},
		"octal is not meant":     {"async: {depth: 0x10}", []string{`notifyd.yaml:1: async.depth: "0x10": must be a whole number`}},
		"negative":               {"async: {shards: -1}", []string{`notifyd.yaml:1: async.shards: "-1": must be a whole number from 0 to 4294967295`}},
		"narrow":                 {"egress: {pin: 128}", []string{`notifyd.yaml:1: egress.pin: "128": must be a whole number from -128 to 127`}},
		"bytes":                  {"async: {stream_bytes: 8GB}", []string{`notifyd.yaml:1: async.stream_bytes: "8GB": must be a number of bytes such as 65536, 256KiB or 8GiB`}},
		"bytes that overflow":    {"async: {stream_bytes: 8388608TiB}", []string{`notifyd.yaml:1: async.stream_bytes: "8388608TiB": must be a number of bytes such as 65536, 256KiB or 8GiB`}},
		"unit elsewhere":         {"async: {depth: 8KiB}", []string{`notifyd.yaml:1: async.depth: "8KiB": must be a whole number`}},
		"float":                  {"retry: {jitter: half}", []string{`notifyd.yaml:1: retry.jitter: "half": must be a number such as 0.5`}},
		"not a number":           {"retry: {jitter: .nan}", []string{`notifyd.yaml:1: retry.jitter: ".nan": must be a number such as 0.5`}},
		"bool":                   {"nats: {sync_always: yes}", []string{`notifyd.yaml:1: nats.sync_always: "yes": must be true or false`}},
		"network":                {"egress:\n  allowed_networks:\n    - 10.0.0.0/8\n    - 10.0.0.0", []string{`notifyd.yaml:4: egress.allowed_networks[1]: "10.0.0.0": must be a network such as 10.0.0.0/8`}},
		"map value":              {"egress: {weights: {a b: x}}", []string{`notifyd.yaml:1: egress.weights["a b"]: "x": must be a number such as 0.5`}},
		"key in a mapping":       {"egress: {proxies: {main: {ulr: x}}}", []string{"notifyd.yaml:1: egress.proxies[main].ulr: unknown key; did you mean egress.proxies[main].url?"}},
		"mapping for a value":    {"drain: {a: 1}", []string{"notifyd.yaml:1: drain: must be a duration such as 10s or 5m, not a mapping"}},
		"list for a value":       {"data_dir: [a]", []string{"notifyd.yaml:1: data_dir: must be a text, not a list"}},
		"value for a section":    {"retry: 5m", []string{`notifyd.yaml:1: retry: must be a mapping, not a text`}},
		"list for a section":     {"retry: [5m]", []string{"notifyd.yaml:1: retry: must be a mapping, not a list"}},
		"value for a list":       {"router: {rules: a}", []string{`notifyd.yaml:1: router.rules: must be a list, not a text`}},
		"mapping for a list":     {"router: {rules: {a: 1}}", []string{"notifyd.yaml:1: router.rules: must be a list, not a mapping"}},
		"list for a mapping":     {"egress: {weights: [1]}", []string{"notifyd.yaml:1: egress.weights: must be a mapping, not a list"}},
		"text for the file":      {"hello", []string{`notifyd.yaml:1: must be a mapping, not a text`}},
		"null":                   {"drain:\nintake:", []string{"notifyd.yaml:1: drain: has no value: must be a duration such as 10s or 5m; leave the key out for the default", "notifyd.yaml:2: intake: has no value: must be a mapping; leave the key out for the default"}},
		"null in a list":         {"egress: {allowed_networks: [~]}", []string{"notifyd.yaml:1: egress.allowed_networks[0]: has no value: must be a network such as 10.0.0.0/8; leave the key out for the default"}},
		"twice":                  {"drain: 1s\ndata_dir: x\ndrain: 2s", []string{"notifyd.yaml:3: drain: is set twice: first on line 1"}},
		"section twice":          {"retry: {window: 1s}\nretry: {jitter: 1}", []string{"notifyd.yaml:2: retry: is set twice: first on line 1"}},
		"twice in a mapping":     {"egress: {weights: {a: 1, a: 2}}", []string{"notifyd.yaml:1: egress.weights[a]: is set twice: first on line 1"}},
		"list as a key":          {"? [a]\n: 1", []string{"notifyd.yaml:1: must have plain texts as keys"}},
		"alias":                  {"data_dir: &x a\nintake: {listen: *x}", []string{"notifyd.yaml:2: intake.listen: must not be an alias: write the value out, and quote a text that begins with *"}},
		"alias of nothing":       {"intake:\n  listen: *x", []string{"notifyd.yaml:2: must not be an alias: write the value out, and quote a text that begins with *"}},
		"merge":                  {"retry:\n  <<: {window: 1s}", []string{"notifyd.yaml:2: retry: must not merge a mapping (<<): write the keys out"}},
		"tag":                    {"data_dir: !x a", []string{"notifyd.yaml:1: data_dir: must not have a YAML tag (!): quote a text that begins with !"}},
		"own reader":             {"drain: 1s\nnats:\n  window: never", []string{`notifyd.yaml:3: nats.window: "never": must be from-to`}},
		"own reader, types":      {"nats:\n  window:\n    a: b", []string{"notifyd.yaml:3: nats.window: cannot unmarshal !!map into string"}},
		"own text":               {"nats: {mood: bad}", []string{`notifyd.yaml:1: nats.mood: "bad": must be a valid mood: "bad" is not wanted`}},
		"syntax":                 {"drain: 1s\nretry: [", []string{"notifyd.yaml:2: is not YAML: did not find expected node content"}},
		"syntax on line 1":       {"drain: a: b", []string{"notifyd.yaml:1: is not YAML: mapping values are not allowed in this context"}},
		"tag in the flow":        {"nats: {password: !hunter2}", []string{"notifyd.yaml:1: is not YAML: did not find expected whitespace or line break"}},
		"indentation":            {"retry:\n  window: 1s\n jitter: 2\n", []string{"notifyd.yaml:3: is not YAML: did not find expected key"}},
		"tab":                    {"retry:\n\twindow: 1s", []string{"notifyd.yaml:2: must be indented with spaces, not tabs"}},
		"two documents":          {"drain: 1s\n---\ndrain: 2s", []string{"notifyd.yaml:2: must not begin a second document: all settings are in one"}},
		"bytes that are no text": {"drain: 1s\ndata_dir: \xff", []string{"notifyd.yaml:2: must be UTF-8 text without control characters"}},
		"secret":                 {"nats: {password: [hunter2], token: bad}", []string{"notifyd.yaml:1: nats.password: must be a text, not a list", "notifyd.yaml:1: nats.token: ********: must be a valid mood"}},
		"secret with a sigil":    {"drain: 1s\nnats: {password: *hunter2}", []string{"notifyd.yaml:2: must not be an alias: write the value out, and quote a text that begins with *"}},
		"secret with a bang":     {"nats:\n  password: !hunter2", []string{"notifyd.yaml:2: nats.password: must not have a YAML tag (!): quote a text that begins with !"}},
		"printed secret":         {"nats: {password: '********'}", []string{"notifyd.yaml:1: nats.password: ********: is a secret as it is printed, not the secret"}},
		"printed URL":            {"nats: {url: 'nats://u:********@h'}", []string{"notifyd.yaml:1: nats.url: ********: is a secret as it is printed, not the secret"}},
		"secret one level up":    {"egress: {proxies: {main: 'http://u:hunter2@h'}}", []string{"notifyd.yaml:1: egress.proxies[main]: must be a mapping, not a text"}},
		"all at once":            {"drain: soon\nasync: {depth: many, x: 1}", []string{`notifyd.yaml:1: drain: "soon": must be a duration such as 10s or 5m`, `notifyd.yaml:2: async.depth: "many": must be a whole number`, "notifyd.yaml:2: async.x: unknown key"}},
		"long":                   {"drain: " + strings.Repeat("x", 100), []string{`notifyd.yaml:1: drain: "` + strings.Repeat("x", 80) + `…": must be a duration such as 10s or 5m`}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := defaults()
			_, err := settings.Load(&cfg, file(test.yaml))
			if err == nil {
				t.Fatalf("%s is taken", test.yaml)
			}
			if diff := cmp.Diff(test.says, strings.Split(err.Error(), "\n")); diff != "" {
				t.Errorf("says (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(defaults(), cfg, compare); diff != "" {
				t.Errorf("changed all the same:\n%s", diff)
			}
			if keyErr := (*settings.KeyError)(nil); !errors.As(err, &keyErr) {
				t.Errorf("%T holds no KeyError", err)
			}
		})
	}
}

func TestEmptyFilesSetNothing(t *testing.T) {
	for _, text := range []string{"", "\n", "# drain: 3s\n", "---\n", "{}", "retry: {}\n", "\ufeff# with a byte order mark\n"} {
		cfg := defaults()
		if _, err := settings.Load(&cfg, file(text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if changed := settings.Changed(defaults(), cfg); changed != nil {
			t.Errorf("%q changes %v", text, changed)
		}
	}
}

// Flag, environment, file, default; and each value's origin is the one that won.
func TestPrecedence(t *testing.T) {
	cfg := defaults()
	from := file("# comment\nintake:\n  listen: file:1\ndata_dir: file\nasync:\n  depth: 1\n  stream_bytes: 256KiB\ndrain: 1m\nplaces: 7\negress:\n  weights: {a: 2}\n")
	from.Env = []string{"HOME=/root", "NOTIFYD_INTAKE_LISTEN=env:1", "NOTIFYD_ASYNC_DEPTH=2", "NOTIFYD_DATA_DIR=env: with # YAML's [signs]"}
	from.Sets = []string{"async.depth=3", "async.depth=4", "intake.listen=set:1"}
	from.Flags = map[string]string{"intake.listen": "flag:1"}
	origins, err := settings.Load(&cfg, from)
	if err != nil {
		t.Fatal(err)
	}
	want := defaults()
	want.Intake.Listen, want.DataDir, want.Drain, want.Places = "flag:1", "env: with # YAML's [signs]", time.Minute, 7
	want.Async.Depth, want.Async.StreamBytes = 4, 256<<10
	want.Egress.Weights = map[string]float64{"a": 2}
	if diff := cmp.Diff(want, cfg, compare); diff != "" {
		t.Errorf("values (-want +got):\n%s", diff)
	}
	got := map[string]string{}
	for _, key := range settings.Keys(cfg) {
		if origin := origins.Of(key.Path); origin != "default" {
			got[key.Path] = origin
		}
	}
	if diff := cmp.Diff(map[string]string{
		"intake.listen": "flag --intake-listen", "data_dir": "environment NOTIFYD_DATA_DIR", "async.depth": "flag --set", "places": "file notifyd.yaml:9",
		"async.stream_bytes": "file notifyd.yaml:7", "drain": "file notifyd.yaml:8", "egress.weights": "file notifyd.yaml:11",
	}, got); diff != "" {
		t.Errorf("origins (-want +got):\n%s", diff)
	}
	if changed := settings.Changed(defaults(), cfg); !cmp.Equal(changed, []string{"intake.listen", "data_dir", "drain", "async.depth", "async.stream_bytes", "egress.weights", "places"}) {
		t.Errorf("changed: %v", changed)
	}
	invalid := origins.Locate(errors.Join(errors.New("async.depth: 4: must be at least 5"), errors.Join(errors.New("drain: 1m: too long")), errors.New("retry.window: 10m: too short")))
	if want := "flag --set: async.depth: 4: must be at least 5\nnotifyd.yaml:8: drain: 1m: too long\nretry.window: 10m: too short"; invalid.Error() != want {
		t.Errorf("located: %v, want %s", invalid, want)
	}
}

// Lists outside a file are YAML on one line, or simply have commas.
func TestListsInVariablesAndFlags(t *testing.T) {
	for text, want := range map[string][]netip.Prefix{
		"":                             {},
		"192.168.0.0/16":               {netip.MustParsePrefix("192.168.0.0/16")},
		"192.168.0.0/16, fd00::/8":     {netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00::/8")},
		" [192.168.0.0/16,'fd00::/8']": {netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("fd00::/8")},
	} {
		cfg := defaults()
		if _, err := settings.Load(&cfg, settings.Sources{Sets: []string{"egress.allowed_networks=" + text}}); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		if diff := cmp.Diff(want, cfg.Egress.Networks, compare); diff != "" {
			t.Errorf("%q:\n%s", text, diff)
		}
	}
	cfg := defaults()
	if _, err := settings.Load(&cfg, settings.Sources{Prefix: "N_", Env: []string{
		"N_ROUTER_RULES=[{name: a, scenes: [x], amount: {currency: CNY, low: 5}}]", "N_EGRESS_PIN=-3", "N_NATS_WINDOW=01:00-02:00",
	}}); err != nil {
		t.Fatal(err)
	}
	if r := cfg.Router.Rules; len(r) != 1 || *r[0].Amount.Low != 5 || *cfg.Egress.Pin != -3 || cfg.NATS.Window.to != "02:00" {
		t.Errorf("loaded %+v", cfg)
	}
}

func TestBrokenVariablesAndFlags(t *testing.T) {
	for name, test := range map[string]struct {
		from settings.Sources
		says string
	}{
		"variable":         {settings.Sources{Env: []string{"NOTIFYD_ASYNC_DEPTH=many"}}, `environment NOTIFYD_ASYNC_DEPTH: "many": must be a whole number`},
		"empty variable":   {settings.Sources{Env: []string{"NOTIFYD_DRAIN="}}, `environment NOTIFYD_DRAIN: "": must be a duration such as 10s or 5m`},
		"in a list":        {settings.Sources{Env: []string{"NOTIFYD_EGRESS_ALLOWED_NETWORKS=10.0.0.0/8,x"}}, `environment NOTIFYD_EGRESS_ALLOWED_NETWORKS: egress.allowed_networks[1]: "x": must be a network such as 10.0.0.0/8`},
		"no YAML":          {settings.Sources{Env: []string{"NOTIFYD_ROUTER_RULES=[{"}}, `environment NOTIFYD_ROUTER_RULES: is not YAML: did not find expected node content`},
		"nothing":          {settings.Sources{Env: []string{"NOTIFYD_ROUTER_RULES="}}, `environment NOTIFYD_ROUTER_RULES: must be a list`},
		"no text":          {settings.Sources{Env: []string{"NOTIFYD_DATA_DIR=\xff"}}, `environment NOTIFYD_DATA_DIR: "\xff": must be a text`},
		"dedicated flag":   {settings.Sources{Flags: map[string]string{"async.stream_bytes": "lots"}}, `flag --async-stream-bytes: "lots": must be a number of bytes such as 65536, 256KiB or 8GiB`},
		"set":              {settings.Sources{Sets: []string{"async.depth=many"}}, `flag --set: async.depth: "many": must be a whole number`},
		"set unknown":      {settings.Sources{Sets: []string{"retry.windw=5m"}}, `flag --set: retry.windw: unknown key; did you mean retry.window?`},
		"set a section":    {settings.Sources{Sets: []string{"retry={}"}}, `flag --set: retry: is a section: set its keys one by one, such as retry.window`},
		"set nothing":      {settings.Sources{Sets: []string{"drain=1s", "hunter2"}}, `flag --set, number 2: must be key=value`},
		"set a secret":     {settings.Sources{Sets: []string{"postgres://u:hunter2@h/db?sslmode=off"}}, `flag --set, number 1: must be key=value`},
		"secret variable":  {settings.Sources{Env: []string{"NOTIFYD_NATS_TOKEN=bad"}}, `environment NOTIFYD_NATS_TOKEN: ********: must be a valid mood`},
		"secret with YAML": {settings.Sources{Env: []string{"NOTIFYD_NATS_KEYS=[*hunter2"}}, `environment NOTIFYD_NATS_KEYS: must not be an alias: write the value out, and quote a text that begins with *`},
	} {
		cfg := defaults()
		test.from.Prefix = "NOTIFYD_"
		if _, err := settings.Load(&cfg, test.from); err == nil || err.Error() != test.says {
			t.Errorf("%s: says %v\nwant %s", name, err, test.says)
		}
	}
}

func TestVariablesThatSetNothingAreReported(t *testing.T) {
	cfg := defaults()
	from := settings.Sources{Prefix: "NOTIFYD_", Foreign: []string{"NOTIFYD_MASTER_KEY"}, Env: []string{
		"NOTIFYD_MASTER_KEY=hunter2", "NOTIFYD_ASNC_DEPTH=hunter2", "NOTIFYD_RETRY=hunter2", "OTHER=hunter2",
	}}
	origins, err := settings.Load(&cfg, from)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"environment NOTIFYD_ASNC_DEPTH: sets nothing; did you mean NOTIFYD_ASYNC_DEPTH?", "environment NOTIFYD_RETRY: sets nothing"}; !cmp.Equal(want, origins.Unused) {
		t.Errorf("unused: %q", origins.Unused)
	}
}

// Two keys with one variable are a mistake of the struct, found by the first test that loads it.
func TestKeysWithOneVariable(t *testing.T) {
	var cfg struct {
		Async struct {
			Depth int `yaml:"depth"`
		} `yaml:"async"`
		AsyncDepth int `yaml:"async_depth"`
	}
	_, err := settings.Load(&cfg, settings.Sources{Prefix: "N_"})
	if want := "environment N_ASYNC_DEPTH: async_depth: has the variable of async.depth: one of the keys needs another name"; err == nil || err.Error() != want {
		t.Errorf("says %v", err)
	}
}

func printed(t *testing.T, cfg any, origins *settings.Origins) string {
	t.Helper()
	var out strings.Builder
	if err := settings.Print(&out, cfg, origins); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func TestPrint(t *testing.T) {
	cfg := defaults()
	from := file(`
drain: 90s
data_dir: "multi\nline: # text"
router:
  rules:
    - {name: "on", scenes: [scan], labels: {"<<": x, a: "1"}, amount: {currency: CNY, low: 5}, after: 24h}
    - name: "all"
egress:
  proxies: {main: {url: http://p, password: hunter2}}
nats:
  url: nats://engine:hunter2@nats:4222
  password: hunter2
  keys: [hunter2, hunter2]
`)
	from.Sets = []string{"egress.weights={}"}
	origins, err := settings.Load(&cfg, from)
	if err != nil {
		t.Fatal(err)
	}
	got, golden := printed(t, &cfg, origins), "testdata/printed.yaml"
	want, err := os.ReadFile(golden)
	if err != nil || got != string(want) {
		t.Errorf("%v; (-want +got):\n%s", err, cmp.Diff(string(want), got))
	}
	if strings.Contains(got, "hunter2") {
		t.Error("a secret is shown")
	}
}

func TestURLsAreMasked(t *testing.T) {
	for text, want := range map[string]string{
		"": `""`, "nats://h:4222": "nats://h:4222", "nats://token@h": "nats://********@h", "postgres://u:pw@h/db?password=x": "postgres://u:********@h/db?********",
		"host=h password=x": "********", "postgres://u:p/w@h/db": "********", "nats://a:b@h,nats://c:d@e": "********", "postgres://u:12?pw@h": "********",
	} {
		cfg := defaults()
		cfg.NATS.URL = text
		if got := printed(t, cfg, nil); !strings.Contains(got, "url: "+want+" # default\n") && !strings.Contains(got, `url: '`+want+"' # default\n") && !strings.Contains(got, `url: "`+want+"\" # default\n") {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// What a test of an example file needs: every key, and its default as the file would say it.
func TestKeys(t *testing.T) {
	got := map[string]string{}
	for _, key := range settings.Keys(defaults()) {
		got[key.Path] = key.Kind + " " + key.Default
	}
	want := map[string]string{
		"intake.listen": "text 127.0.0.1:8700", "data_dir": "text /var/lib/notifyd", "drain": "duration 25s", "router.rules": "list of mapping []",
		"async.depth": "whole number 512", "async.shards": "whole number 0", "async.stream_bytes": "number of bytes 8GiB", "retry.window": "duration 10m", "retry.jitter": "number 0.5",
		"egress.allowed_networks": "list of network [10.0.0.0/8]", "egress.proxies": "mapping {}", "egress.weights": "mapping {direct: 1}", "egress.pin": "whole number null",
		"nats.sync_always": "true or false false", "nats.url": `text ""`, "nats.password": `text ""`, "nats.keys": "list of text []", "nats.window": "span 08:00-20:00",
		"nats.mood": `mood ""`, "nats.token": `mood ""`, "places": "whole number 0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestChangedComparesListsAndMappingsWhole(t *testing.T) {
	before, after := defaults(), defaults()
	before.Router.Rules, after.Router.Rules = nil, []routing{}
	after.Egress.Weights = maps.Clone(before.Egress.Weights)
	after.Egress.Weights["b"] = 2
	after.Egress.Networks = append(after.Egress.Networks, netip.MustParsePrefix("fd00::/8"))
	after.NATS.Window.to = "21:00"
	if got, want := settings.Changed(before, &after), []string{"egress.allowed_networks", "egress.weights", "nats.window"}; !cmp.Equal(got, want) {
		t.Errorf("changed: %v", got)
	}
}

// open has every kind of setting of config and no secrets, so that what is printed can be loaded.
type open struct {
	Text    string             `yaml:"text"`
	Wait    time.Duration      `yaml:"wait"`
	Whole   int64              `yaml:"whole"`
	Size    uint16             `yaml:"size_bytes"`
	Part    float32            `yaml:"part"`
	Yes     bool               `yaml:"yes"`
	Maybe   *string            `yaml:"maybe"`
	Nets    []netip.Prefix     `yaml:"nets"`
	Words   []string           `yaml:"words"`
	Rules   []routing          `yaml:"rules"`
	Labels  map[string]string  `yaml:"labels"`
	ByCount map[int][]int      `yaml:"by_count"`
	Mood    mood               `yaml:"mood"`
	Below   struct{ Key bool } `yaml:"below"`
	Chosen  *amount            `yaml:"chosen"`
}

// Nothing panics, and what loads is printed so that it loads again as the same.
func FuzzLoad(f *testing.F) {
	f.Add("text: a\nwait: 3s\nwhole: 5\nsize_bytes: 2KiB\npart: 0.1\nyes: true\nmaybe: ~\nnets: [10.0.0.0/8]\nwords: ['', \"a\\nb\"]\n", "words=a,b")
	f.Add("rules: [{name: a, scenes: [], labels: {'<<': '~'}, amount: {currency: x, low: 0}, after: 1h}]\nby_count: {1: [2], 10: []}", "text=: #")
	f.Add("labels: {? 'a b' : |\n  x\n}\nchosen: {currency: y}\nbelow: {key: true}", "chosen={low: ~}")
	f.Add("labels:\n  a: |2\n     x\n\n  '': >+\n   y\n\n", "rules=[{name: '{'}]")
	f.Fuzz(func(t *testing.T, text, set string) {
		var loaded open
		origins, err := settings.Load(&loaded, settings.Sources{FileName: "f", File: []byte(text), Sets: []string{set}, Env: []string{"N_MOOD=" + set}, Prefix: "N_"})
		if err == nil {
			printsAndLoads(t, loaded, origins)
		} else if strings.TrimSpace(err.Error()) == "" {
			t.Error("a fault says nothing")
		}
		if utf8.ValidString(text) {
			printsAndLoads(t, open{Text: text, Maybe: &text, Words: []string{text}, Labels: map[string]string{text: text}, Mood: "m" + mood(text), Rules: []routing{{Name: text}}}, nil)
		}
	})
}

func printsAndLoads(t *testing.T, want open, origins *settings.Origins) {
	t.Helper()
	var got open
	out := printed(t, want, origins)
	if _, err := settings.Load(&got, file(out)); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if changed := settings.Changed(want, got); changed != nil {
		t.Errorf("%v differ: %#v, %#v\n%s", changed, want, got, out)
	}
	settings.Keys(want)
}
