package main

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

// Contention is recorded while somebody asks for it, and by one at a time.
func TestContentionIsRecordedOnDemand(t *testing.T) {
	t.Parallel()
	said := make(chan int, 2)
	c := &contention{name: "mutex", record: func(on int) { said <- on }}
	ask := func(query string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		c.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/debug/pprof/mutex"+query, nil))
		return w
	}
	for _, query := range []string{"?seconds=0", "?seconds=soon", "?seconds=601"} {
		if w := ask(query); w.Code != http.StatusBadRequest {
			t.Errorf("%s: %d %s", query, w.Code, w.Body)
		}
	}
	first := make(chan *httptest.ResponseRecorder, 1)
	go func() { first <- ask("?seconds=2") }()
	if on := <-said; on != 1 {
		t.Errorf("recording begins with %d", on)
	}
	if w := ask("?seconds=1"); w.Code != http.StatusConflict {
		t.Errorf("a second one meanwhile: %d %s", w.Code, w.Body)
	}
	if w := <-first; w.Code != http.StatusOK || w.Body.Len() == 0 {
		t.Errorf("the first one: %d, %d bytes", w.Code, w.Body.Len())
	}
	if off := <-said; off != 0 {
		t.Errorf("recording ends with %d", off)
	}
}
