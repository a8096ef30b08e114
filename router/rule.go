package router

// Config is the routing part of the configuration file.
type Config struct {
	Rules []Rule `yaml:"rules,omitempty" json:"rules,omitempty"` // in order; the first match decides
}

// Rule says what happens to the notifications that it matches.
type Rule struct {
	Name string `yaml:"name" json:"name"`
	When When   `yaml:"when,omitempty" json:"when,omitzero"`
	Then Then   `yaml:"then,omitempty" json:"then,omitzero"`
}

// When matches a notification if every condition that is set holds; a list holds if one of its members does.
type When struct {
	Scenes     []string          `yaml:"scenes,omitempty" json:"scenes,omitempty"`
	Merchants  []string          `yaml:"merchants,omitempty" json:"merchants,omitempty"`
	EventTypes []string          `yaml:"event_types,omitempty" json:"event_types,omitempty"`
	Sources    []string          `yaml:"sources,omitempty" json:"sources,omitempty"`
	Apps       []string          `yaml:"apps,omitempty" json:"apps,omitempty"`
	Amount     *Amount           `yaml:"amount,omitempty" json:"amount,omitempty"`
	Labels     map[string]string `yaml:"labels,omitempty" json:"labels,omitempty"` // each must be there with this value
	Times      []Window          `yaml:"times,omitempty" json:"times,omitempty"`
}

// Amount holds for amounts in one currency between two bounds, both included; a nil bound is none.
type Amount struct {
	Currency      string `yaml:"currency" json:"currency"`
	MinMinorUnits *int64 `yaml:"min_minor_units,omitempty" json:"min_minor_units,omitempty"`
	MaxMinorUnits *int64 `yaml:"max_minor_units,omitempty" json:"max_minor_units,omitempty"`
}

// Window is a time of the week on the clock of a place. One that ends before it starts goes on into the next day and
// belongs to the day on which it starts.
type Window struct {
	Days     []string `yaml:"days,omitempty" json:"days,omitempty"` // mon … sun; empty: every day
	From     string   `yaml:"from,omitempty" json:"from,omitempty"` // "HH:MM", included; empty: 00:00
	To       string   `yaml:"to,omitempty" json:"to,omitempty"`     // "HH:MM", not included; empty: 24:00
	Timezone string   `yaml:"timezone,omitempty" json:"timezone,omitempty"`
}

// Then is what a rule decides; an empty value is left to the merchant's settings.
type Then struct {
	Lane string `yaml:"lane,omitempty" json:"lane,omitempty"` // sync, async
	// Isolation is merchant, merchant_scene, merchant_url, or a template such as "{merchant}/{label:channel}".
	Isolation string `yaml:"isolation,omitempty" json:"isolation,omitempty"`
	Egress    string `yaml:"egress,omitempty" json:"egress,omitempty"`
	Schedule  string `yaml:"schedule,omitempty" json:"schedule,omitempty"`
	Persist   string `yaml:"persist,omitempty" json:"persist,omitempty"` // stream, ledger, after
}

// Known holds the names that rules may refer to. EgressDirect is always known.
type Known struct {
	Egresses  []string
	Schedules []string
}
