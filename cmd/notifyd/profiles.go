package main

import (
	"fmt"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strconv"
	"sync"
)

// serveProfiles adds Go's profiler: where time and memory go, what all goroutines do, and who waits for whom.
func serveProfiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.Handle("GET /debug/pprof/mutex", &contention{name: "mutex", record: func(on int) { runtime.SetMutexProfileFraction(on) }})
	mux.Handle("GET /debug/pprof/block", &contention{name: "block", record: func(on int) { runtime.SetBlockProfileRate(on * blockedFor) }})
}

const (
	// blockedFor is the waiting time, in nanoseconds, of which one sample is taken: shorter waits are sampled in proportion.
	blockedFor = 10_000
	// contentionSeconds is how long contention is recorded unless the request says so.
	contentionSeconds = 10
)

// contention is a profile of waiting. It is recorded for as long as somebody asks (?seconds=N), as it slows down what waits.
type contention struct {
	name   string
	record func(on int) // 1: everything, 0: nothing
	asking sync.Mutex
}

func (c *contention) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	seconds, err := strconv.Atoi(query.Get("seconds"))
	if query.Get("seconds") == "" {
		seconds, err = contentionSeconds, nil
	}
	if err != nil || seconds < 1 || seconds > 600 {
		http.Error(w, fmt.Sprintf("seconds: %q: must be a number from 1 to 600", query.Get("seconds")), http.StatusBadRequest)
		return
	}
	if !c.asking.TryLock() {
		http.Error(w, "somebody else is recording it: try again later", http.StatusConflict)
		return
	}
	defer c.asking.Unlock()
	c.record(1)
	defer c.record(0)
	query.Set("seconds", strconv.Itoa(seconds))
	asked := r.Clone(r.Context())
	asked.URL.RawQuery = query.Encode()
	pprof.Handler(c.name).ServeHTTP(w, asked)
}
