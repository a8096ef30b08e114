// Package health watches a node: it samples what the node depends on, says whether it is ready, and raises alarms. It
// asks the parts for numbers and never holds one of them up; metrics, in the folder below, shows the same numbers.
package health
