package chart

import (
	"fmt"
	"image/color"
	"math"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/flannelkit/flannelkit/bench/result"
)

// throughput compares TCP with one stream on every link.
func (d *data) throughput() *figure {
	return d.grouped(result.TCP1, figure{
		file: "throughput.svg", title: "TCP, one stream",
	}, "Gbit/s")
}

// cpu compares what a tunnel costs on every link.
func (d *data) cpu() *figure {
	return d.grouped(result.Tunnel, figure{
		file: "cpu.svg", title: "Processor time of the tunnel: what it takes more than the plain link",
	}, "processors per Gbit/s")
}

// grouped makes bars of one test: groups are links, and in each group is a bar for each candidate.
func (d *data) grouped(test result.Test, f figure, unit string) *figure {
	var groups []result.Bed
	var shown []string
	for _, bed := range d.run.Beds() {
		if _, ok := d.any(bed, test); ok {
			groups = append(groups, bed)
		}
	}
	for _, c := range d.candidates {
		for _, bed := range groups {
			if d.run.Summary(bed, test, c).N > 0 {
				shown = append(shown, c)
				break
			}
		}
	}
	if len(shown) == 0 {
		return nil
	}
	f.sub = d.sub("", groups, shown, test)
	f.desc = fmt.Sprintf("%s, %s, by link and candidate.", f.title, unit)
	f.plot = newPlot("link between the hosts", unit)
	all := &bars{numbers: len(shown)*len(groups) <= maxNumbers}
	step := 0.84 / float64(len(shown))
	var at []float64
	var names []string
	for i, bed := range groups {
		at, names = append(at, float64(i)), append(names, bed.String())
		for j, c := range shown {
			s := d.run.Summary(bed, test, c)
			if s.N == 0 {
				continue
			}
			x := float64(i) + (float64(j)-float64(len(shown)-1)/2)*step
			all.list = append(all.list, bar{x: x, half: step * 0.44, s: s, look: d.looks[c]})
			f.desc += fmt.Sprintf(" %v, %s: %s (%s to %s).", bed, d.label(c), number(s.Median), number(s.Min), number(s.Max))
		}
	}
	for _, c := range shown {
		f.legend = append(f.legend, entry{d.label(c), swatch{d.looks[c]}})
	}
	f.plot.Add(all)
	f.plot.X.Tick.Marker = ticks(at, names)
	f.plot.X.Tick.LineStyle.Color = color.Transparent
	f.plot.X.Min, f.plot.X.Max = -0.5, float64(len(groups))-0.5
	f.plot.Y.Min = min(0, all.lowest()*1.1)
	f.plot.Y.Max = all.highest() * 1.08
	return &f
}

// any finds a candidate that has a test.
func (d *data) any(bed result.Bed, test result.Test) (string, bool) {
	for _, c := range d.candidates {
		if d.run.Summary(bed, test, c).N > 0 {
			return c, true
		}
	}
	return "", false
}

// maxNumbers is how many bars may have their medians written above them before these touch.
const maxNumbers = 15

// A bar is a median and its spread, at x and half to either side of it.
type bar struct {
	x, half float64
	s       result.Summary
	look    look
}

// bars draws bars, in the coordinates of the plot.
type bars struct {
	list    []bar
	numbers bool // write the medians above them
}

// Plot implements plot.Plotter.
func (b *bars) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	for _, bar := range b.list {
		left, right := x(bar.x-bar.half), x(bar.x+bar.half)
		outline := []vg.Point{{X: left, Y: y(0)}, {X: left, Y: y(bar.s.Median)}, {X: right, Y: y(bar.s.Median)}, {X: right, Y: y(0)}}
		c.FillPolygon(bar.look.fill, outline)
		whisker(c, ink(), x(bar.x), y(bar.s.Min), y(bar.s.Max), min(4, (right-left)/3))
		if b.numbers {
			sty := style(8, text.XCenter)
			sty.YAlign = text.YBottom
			c.FillText(sty, vg.Point{X: x(bar.x), Y: max(y(bar.s.Max), y(bar.s.Median), y(0)) + 2}, number(bar.s.Median))
		}
	}
	c.StrokeLine2(draw.LineStyle{Color: soft(), Width: 0.5}, c.Min.X, y(0), c.Max.X, y(0))
}

// whisker draws a spread. Of a single run there is none.
func whisker(c draw.Canvas, of color.Color, x, low, high, half vg.Length) {
	if high-low < 0.5 {
		return
	}
	sty := draw.LineStyle{Color: of, Width: 0.8}
	c.StrokeLine2(sty, x, low, x, high)
	c.StrokeLine2(sty, x-half, low, x+half, low)
	c.StrokeLine2(sty, x-half, high, x+half, high)
}

func (b *bars) highest() float64 {
	high := 0.0
	for _, bar := range b.list {
		high = max(high, bar.s.Max)
	}
	if high <= 0 {
		return 1
	}
	return high
}

func (b *bars) lowest() float64 {
	low := math.Inf(1)
	for _, bar := range b.list {
		low = min(low, bar.s.Min)
	}
	return low
}

// A swatch is a bar's mark in the legend.
type swatch struct{ look look }

// Thumbnail implements plot.Thumbnailer.
func (s swatch) Thumbnail(c *draw.Canvas) {
	side := c.Max.Y - c.Min.Y
	c.FillPolygon(s.look.fill, []vg.Point{{X: c.Max.X - side, Y: c.Min.Y}, {X: c.Max.X - side, Y: c.Max.Y}, {X: c.Max.X, Y: c.Max.Y}, {X: c.Max.X, Y: c.Min.Y}})
}

// number writes a value with three digits, as the report's tables do, and with commas.
func number(v float64) string { return result.Thousands(result.Number(v)) }
