package health

import (
	"errors"
	"fmt"
	"net/url"
	"time"

	"notifyd/contract/sign"
)

// Config of the alarms. All of it can be changed while the engine runs.
type Config struct {
	Webhook WebhookConfig `yaml:"webhook"`

	// NoDeliveriesAfter is how long work may wait without an attempt being started. The alarm comes up to two seconds later.
	NoDeliveriesAfter time.Duration `yaml:"no_deliveries_after"`
	// DegradedAfter is how long NATS or Postgres may not answer.
	DegradedAfter time.Duration `yaml:"degraded_after"`
	// AcknowledgementP99 is how long 99 % of the acknowledgements of AcknowledgementWindow may take, from acceptance. It
	// is judged when there are at least AcknowledgementSamples.
	AcknowledgementP99     time.Duration `yaml:"acknowledgement_p99"`
	AcknowledgementWindow  time.Duration `yaml:"acknowledgement_window"`
	AcknowledgementSamples int           `yaml:"acknowledgement_samples"`
	// DeadLetters is how many notifications may become dead within DeadLettersWindow.
	DeadLetters       int           `yaml:"dead_letters"`
	DeadLettersWindow time.Duration `yaml:"dead_letters_window"`
	// LedgerLag is how old an outcome may become that is not in the ledger yet.
	LedgerLag time.Duration `yaml:"ledger_lag"`
	// MerchantFailingFor is how long a merchant may acknowledge nothing, over at least MerchantFailingAttempts attempts.
	MerchantFailingFor      time.Duration `yaml:"merchant_failing_for"`
	MerchantFailingAttempts int           `yaml:"merchant_failing_attempts"`
	// KeyExpiringWithin is how long before its end a payment service's key is an alarm.
	KeyExpiringWithin time.Duration `yaml:"key_expiring_within"`
}

// WebhookConfig says where alarms are sent.
type WebhookConfig struct {
	// URL gets a POST for each alarm that is raised or cleared; empty: nobody does. Its path may carry a token.
	URL string `yaml:"url" secret:"true"`
	// Secret signs it as Standard Webhooks has it: whsec_ and base64. Empty: it is not signed.
	Secret Secret `yaml:"secret" secret:"true"`
}

// Secret is not shown by whatever formats it.
type Secret string

// String hides it.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[secret]"
}

// GoString hides it.
func (s Secret) GoString() string { return s.String() }

// MarshalText hides it from JSON and YAML.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// DefaultConfig is used where the operator sets nothing.
func DefaultConfig() Config {
	return Config{
		NoDeliveriesAfter: 8 * time.Second, DegradedAfter: 3 * time.Second,
		AcknowledgementP99: 13 * time.Second, AcknowledgementWindow: 5 * time.Minute, AcknowledgementSamples: 100,
		DeadLetters: 50, DeadLettersWindow: 10 * time.Minute, LedgerLag: 10 * time.Second,
		MerchantFailingFor: 10 * time.Minute, MerchantFailingAttempts: 10, KeyExpiringWithin: 14 * 24 * time.Hour,
	}
}

// Validate names every key that has a value nobody can work with.
func (c Config) Validate() error {
	var errs []error
	for _, bound := range []struct {
		key   string
		value time.Duration
		least time.Duration
	}{
		{"no_deliveries_after", c.NoDeliveriesAfter, time.Second},
		{"degraded_after", c.DegradedAfter, 0},
		{"acknowledgement_p99", c.AcknowledgementP99, time.Millisecond},
		{"acknowledgement_window", c.AcknowledgementWindow, time.Second},
		{"dead_letters_window", c.DeadLettersWindow, time.Second},
		{"ledger_lag", c.LedgerLag, 100 * time.Millisecond},
		{"merchant_failing_for", c.MerchantFailingFor, time.Second},
		{"key_expiring_within", c.KeyExpiringWithin, 0},
	} {
		if bound.value < bound.least {
			errs = append(errs, fmt.Errorf("alarms.%s: %s: must be at least %s", bound.key, bound.value, bound.least))
		}
	}
	for _, least := range []struct {
		key   string
		value int
	}{
		{"acknowledgement_samples", c.AcknowledgementSamples},
		{"dead_letters", c.DeadLetters},
		{"merchant_failing_attempts", c.MerchantFailingAttempts},
	} {
		if least.value < 1 {
			errs = append(errs, fmt.Errorf("alarms.%s: %d: must be at least 1", least.key, least.value))
		}
	}
	return errors.Join(append(errs, c.Webhook.validate())...)
}

// validate repeats no value: a URL may carry a token.
func (c WebhookConfig) validate() error {
	if c.URL != "" {
		u, err := url.Parse(c.URL)
		if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
			return errors.New("alarms.webhook.url: must be an http or https URL with a host")
		}
	}
	if c.Secret != "" {
		if _, err := sign.ParseStandardSecret(string(c.Secret)); err != nil {
			return fmt.Errorf("alarms.webhook.secret: %w", err)
		}
	}
	return nil
}
