package main

import (
	"fmt"
	"strconv"
	"strings"
)

// variation is one dimension of the shape, and the values to measure it with.
type variation struct {
	of     string
	values []int
}

type variations []variation

// dimensions are what can be varied.
func (s *shape) dimensions() map[string]*int {
	return map[string]*int{"merchants": &s.Merchants, "bytes": &s.Bytes, "rows": &s.Rows, "queues": &s.Queues, "nodes": &s.Nodes}
}

// String is for the flag package.
func (v *variations) String() string { return "" }

// Set reads name=number,number.
func (v *variations) Set(text string) error {
	name, list, ok := strings.Cut(text, "=")
	if !ok || (&shape{}).dimensions()[name] == nil {
		return fmt.Errorf("%q: must be merchants, bytes, rows, queues or nodes, and their values: merchants=10,100", text)
	}
	values, err := numbers(list)
	if err != nil {
		return err
	}
	*v = append(*v, variation{of: name, values: values})
	return nil
}

func numbers(list string) (all []int, err error) {
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(text))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("%q: must be a whole number, 0 or more", text)
		}
		all = append(all, n)
	}
	return all, nil
}

// shapes are all that is to be measured: one variation at a time, the other dimensions as they are.
func (v variations) shapes(from shape) []variant {
	if len(v) == 0 {
		return []variant{{shape: from}}
	}
	var all []variant
	for _, one := range v {
		for _, value := range one.values {
			s := from
			*s.dimensions()[one.of] = value
			all = append(all, variant{of: one.of, shape: s})
		}
	}
	return all
}

// variant is a shape, and which dimension of it is being varied.
type variant struct {
	of string
	shape
}
