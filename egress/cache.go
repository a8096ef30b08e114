package egress

import "sync"

// cache keeps what was made of a text. It is bounded: when full, it starts again from empty.
type cache[V any] struct {
	limit int
	mu    sync.RWMutex
	known map[string]V
}

func (c *cache[V]) get(text string) (V, bool) {
	c.mu.RLock()
	v, ok := c.known[text]
	c.mu.RUnlock()
	return v, ok
}

func (c *cache[V]) put(text string, v V) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.known == nil || len(c.known) >= c.limit {
		c.known = make(map[string]V)
	}
	c.known[text] = v
}
