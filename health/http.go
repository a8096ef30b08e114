package health

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"go.uber.org/zap"

	"notifyd/ledger"
)

// Handle adds /healthz, /readyz and /alarms. None of them asks a dependency.
func (m *Monitor) Handle(mux *http.ServeMux) {
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", m.serveReady)
	mux.HandleFunc("GET /alarms", m.serveAlarms)
}

// serveReady answers 200 or 503, as text or, when asked for, as JSON.
func (m *Monitor) serveReady(w http.ResponseWriter, r *http.Request) {
	report := m.Ready()
	status := http.StatusOK
	if !report.Ready {
		status = http.StatusServiceUnavailable
	}
	if r.URL.Query().Get("format") == "json" || strings.Contains(r.Header.Get("Accept"), "application/json") {
		m.serveJSON(w, status, report)
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = fmt.Fprint(w, report.text())
}

// text is a line for the node and one for each dependency.
func (r Report) text() string {
	var out strings.Builder
	switch {
	case r.Draining:
		out.WriteString("not ready: draining\n")
	case r.Ready:
		out.WriteString("ready\n")
	default:
		out.WriteString("not ready\n")
	}
	for _, d := range r.Dependencies {
		fmt.Fprintf(&out, "%s: %s", d.Name, d.State)
		if d.State != StateOK {
			out.WriteString(": " + d.Words)
		}
		if d.Cause != "" {
			out.WriteString(" (" + d.Cause + ")")
		}
		out.WriteByte('\n')
	}
	return out.String()
}

func (m *Monitor) serveAlarms(w http.ResponseWriter, _ *http.Request) {
	active, recent := m.Alarms()
	m.serveJSON(w, http.StatusOK, struct {
		Active []alarmJSON `json:"active"`
		Recent []alarmJSON `json:"recent"`
	}{allToJSON(active), allToJSON(recent)})
}

func allToJSON(alarms []ledger.Alarm) []alarmJSON {
	out := make([]alarmJSON, len(alarms))
	for i, a := range alarms {
		out[i] = toJSON(a)
	}
	return out
}

func (m *Monitor) serveJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(body); err != nil {
		m.parts.Log.Debug("answer was not read", zap.Error(err))
	}
}
