package client

// OpenStreams begins to open streams, as the first submission does.
func (c *Client) OpenStreams() { c.openStream() }
