package main

import (
	"fmt"
	"html"
	"math"
	"strings"
)

// The size of a picture in pixels, and of what stands around its plot.
const (
	width, rowHeight           = 760, 22
	plotHeight                 = 260
	left, leftOfBars           = 70, 190
	right, rightOfBars         = 20, 60
	top, bottom                = 62, 46
	marks              float64 = 5 // on an axis, about
)

// colour of a series.
func colour(i int) string {
	colours := []string{"#3b6fb6", "#d1702a", "#4c9a52", "#8d6bb1", "#7a7a7a", "#c0504d"}
	return colours[i%len(colours)]
}

// line is a series over x.
type line struct {
	name string
	x, y []float64
}

// bar is a row of parts, one behind the other.
type bar struct {
	label string
	parts []float64
}

// canvas collects the elements of one picture.
type canvas struct{ strings.Builder }

func newCanvas(height int, title, unit string, legend []string) *canvas {
	c := &canvas{}
	c.add(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`, width, height)
	c.add(`<rect width="100%%" height="100%%" fill="white"/>`)
	c.text(12, 20, "start", title+" ("+unit+")", ` font-size="14" font-weight="bold"`)
	x := 12.0
	for i, name := range legend {
		c.add(`<rect x="%.0f" y="32" width="12" height="12" fill="%s"/>`, x, colour(i))
		c.text(x+17, 42, "start", name, "")
		x += 40 + 7*float64(len([]rune(name)))
	}
	return c
}

func (c *canvas) add(format string, args ...any) { fmt.Fprintf(c, format+"\n", args...) }

func (c *canvas) text(x, y float64, anchor, text, more string) {
	c.add(`<text x="%.1f" y="%.1f" text-anchor="%s" fill="#222"%s>%s</text>`, x, y, anchor, more, html.EscapeString(text))
}

func (c *canvas) end() string {
	c.add(`</svg>`)
	return c.String()
}

// bars draws rows of stacked parts.
func bars(title, unit string, legend []string, rows []bar) string {
	height := top + rowHeight*len(rows) + bottom
	c := newCanvas(height, title, unit, legend)
	most := 0.0
	for _, r := range rows {
		most = max(most, sum(r.parts))
	}
	step := roundStep(most)
	scale := float64(width-leftOfBars-rightOfBars) / max(most, step)
	for v := 0.0; v <= most; v += step {
		x := leftOfBars + v*scale
		c.add(`<line x1="%.1f" y1="%d" x2="%.1f" y2="%d" stroke="#ddd"/>`, x, top-6, x, height-bottom+4)
		c.text(x, float64(height-bottom+20), "middle", number(v), "")
	}
	for i, r := range rows {
		y, x := float64(top+rowHeight*i), float64(leftOfBars)
		c.text(leftOfBars-8, y+13, "end", r.label, "")
		for p, v := range r.parts {
			if v > 0 {
				c.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%d" fill="%s"/>`, x, y, v*scale, rowHeight-6, colour(p))
			}
			x += v * scale
		}
		c.text(x+5, y+13, "start", number(sum(r.parts)), ` fill-opacity="0.7"`)
	}
	return c.end()
}

// lines draws series; with logarithmic x each step is a tenfold, and 0 has a place of its own at the left.
func lines(title, unit, xName string, logarithmic bool, all []line) string {
	var legend []string
	leastX, mostX, mostY := math.Inf(1), math.Inf(-1), 0.0
	place := func(x float64) float64 {
		if logarithmic {
			return math.Log10(max(x, 1))
		}
		return x
	}
	for _, l := range all {
		legend = append(legend, l.name)
		for i := range l.x {
			leastX, mostX, mostY = min(leastX, place(l.x[i])), max(mostX, place(l.x[i])), max(mostY, l.y[i])
		}
	}
	c := newCanvas(top+plotHeight+bottom, title, unit, legend)
	step := roundStep(mostY)
	px := func(x float64) float64 {
		return left + (place(x)-leastX)/max(mostX-leastX, 1e-9)*float64(width-left-right)
	}
	py := func(y float64) float64 { return top + plotHeight - y/max(mostY, step)*plotHeight }
	for v := 0.0; v <= max(mostY, step); v += step {
		c.add(`<line x1="%d" y1="%.1f" x2="%d" y2="%.1f" stroke="#ddd"/>`, left, py(v), width-right, py(v))
		c.text(left-8, py(v)+4, "end", number(v), "")
	}
	for i := range all[0].x { // the marks of x are the first series' own, as many as there is room for
		if every := 1 + len(all[0].x)/12; i%every == 0 {
			c.text(px(all[0].x[i]), top+plotHeight+18, "middle", number(all[0].x[i]), "")
		}
	}
	c.text(left+float64(width-left-right)/2, top+plotHeight+38, "middle", xName, "")
	for s, l := range all {
		var points strings.Builder
		for i := range l.x {
			fmt.Fprintf(&points, "%.1f,%.1f ", px(l.x[i]), py(l.y[i]))
			c.add(`<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`, px(l.x[i]), py(l.y[i]), colour(s))
		}
		c.add(`<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`, strings.TrimSpace(points.String()), colour(s))
	}
	return c.end()
}

// roundStep is 1, 2 or 5 times a power of ten, so that an axis up to most has some marks.
func roundStep(most float64) float64 {
	if most <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(most/marks)))
	for _, times := range []float64{1, 2, 5} {
		if most <= times*power*(marks+1) {
			return times * power
		}
	}
	return 10 * power
}

// number writes a value as short as it can be told.
func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%gM", math.Round(v/1e4)/100)
	case v >= 1e4:
		return fmt.Sprintf("%gk", math.Round(v/100)/10)
	case v >= 100 || v == math.Trunc(v):
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.3g", v)
}

func sum(all []float64) (s float64) {
	for _, v := range all {
		s += v
	}
	return s
}
