package chart

import (
	"fmt"
	"math"
	"slices"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/flannelkit/flannelkit/bench/result"
)

// A point is a median and its spread at x.
type point struct {
	x    float64
	s    result.Summary
	full bool // the sender's processor was full: the path may carry more
}

// A line is the points of one candidate, or of one test, from left to right.
type line struct {
	name    string
	look    look
	points  []point
	noMarks bool      // too many points to mark each
	aside   vg.Length // how far to the right the marks stand, so that those of different lines do not hide each other
}

// rates are the lines of all candidates through the results of some tests, each at its x.
func (d *data) rates(bed result.Bed, tests []result.Test, x func(result.Test) float64) []line {
	var lines []line
	for _, c := range d.candidates {
		l := line{name: d.label(c), look: d.looks[c]}
		for _, t := range tests {
			if sum := d.run.Summary(bed, t, c); sum.N > 0 {
				l.points = append(l.points, point{x(t), sum, d.run.SenderFull(bed, t, c)})
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// sizes shows the loss-free rate against the size of the packets.
func (d *data) sizes() *figure {
	sizes := map[result.Test]float64{result.UDP64: 64, result.UDP512: 512, result.UDP1400: 1400}
	tests := []result.Test{result.UDP64, result.UDP512, result.UDP1400}
	bed, ok := d.bed(d.candidates, tests...)
	if !ok {
		return nil
	}
	lines := d.rates(bed, tests, func(t result.Test) float64 { return sizes[t] })
	f := &figure{file: "sizes.svg", title: "UDP without loss, by packet size", sub: d.sub(link(bed), []result.Bed{bed}, d.candidates, tests...) + fullNote(lines)}
	return f.fill(newPlot("UDP payload, bytes", "1,000 packets/s"), lines, ticks([]float64{64, 512, 1400}, []string{"64", "512", "1,400"}))
}

// peers shows the loss-free rate against the number of peers.
func (d *data) peers() *figure {
	counts := result.PeerTests()
	var tests []result.Test
	for _, t := range result.Measured() {
		if _, ok := counts[t]; ok {
			tests = append(tests, t)
		}
	}
	bed, ok := d.bed(d.candidates, tests...)
	if !ok {
		return nil
	}
	lines := d.rates(bed, tests, func(t result.Test) float64 { return float64(counts[t]) })
	f := &figure{file: "peers.svg", title: "UDP, 64 bytes, without loss, by number of peers", sub: d.sub(link(bed), []result.Bed{bed}, d.candidates, tests...) + fullNote(lines)}
	p := newPlot("peers that the packets go to", "1,000 packets/s")
	p.X.Scale = plot.LogScale{}
	return f.fill(p, lines, ticks([]float64{1, 10, 100, 1000, 10_000}, []string{"1", "10", "100", "1,000", "10,000"}))
}

// fullNote explains hollow marks where there are any.
func fullNote(lines []line) string {
	for _, l := range lines {
		if slices.ContainsFunc(l.points, func(p point) bool { return p.full }) {
			return "; hollow: the sender's processor was full"
		}
	}
	return ""
}

// engines shows what more engines bring. The unit differs from test to test, so it is the ratio to one engine.
func (d *data) engines() *figure {
	tests := []result.Test{result.TCP1, result.TCP4, result.TCP16, result.TCP64, result.UDP64, result.UDP1400}
	if len(d.variants) < 2 || !slices.Contains(d.run.Candidates, result.UDP) {
		return nil
	}
	bed, ok := d.bed([]string{result.UDP}, tests...)
	if !ok {
		return nil
	}
	var at []float64
	var names, candidates []string
	ports := false
	for _, v := range d.variants {
		candidates, ports = append(candidates, v.candidate), ports || v.ports
		if x := float64(v.engines); !slices.Contains(at, x) {
			at, names = append(at, x), append(names, fmt.Sprint(v.engines))
		}
	}
	colours := palette()
	order := []int{2, 1, 3, 4, 5, 0} // of the palette, so that neighbours differ most
	var lines []line
	for i, t := range tests {
		l := line{name: t.Title(), look: newLook(colours, order[i])}
		if ports { // then the dashes tell with from without
			l.look.dashes = nil
		}
		if l.points = d.scaling(bed, t, false); len(l.points) > 1 {
			lines = append(lines, l)
		}
		l.name, l.look.dashes = l.name+", ports", []vg.Length{4, 3}
		if l.points = d.scaling(bed, t, true); len(l.points) > 0 {
			lines = append(lines, l)
		}
	}
	f := &figure{file: "engines.svg", title: "The udp backend with more engines", sub: d.sub(link(bed), []result.Bed{bed}, candidates, tests...)}
	if ports {
		f.title += ", and with several source ports each"
	}
	return f.fill(newPlot("engines", "rate, times that of one engine"), lines, ticks(at, names))
}

// scaling is a test's rate by the number of engines, of the variants with or without several ports.
func (d *data) scaling(bed result.Bed, test result.Test, ports bool) []point {
	var points []point
	for _, v := range d.variants {
		if r := d.run.Ratio(bed, test, v.candidate, result.UDP); r.N > 0 && v.ports == ports {
			points = append(points, point{float64(v.engines), result.Summary{N: r.N, Median: r.Of, Min: r.Min, Max: r.Max}, false})
		}
	}
	return points
}

// latency shows the whole distribution, the slowest few most of all: an average or a median says nothing about those.
func (d *data) latency() *figure {
	bed, ok := d.bed(d.candidates, result.RR1)
	if !ok {
		return nil
	}
	var lines []line
	last := 0.0
	for _, c := range d.candidates {
		l := line{name: d.label(c), look: d.looks[c]}
		for _, q := range d.quantiles(bed, c) {
			l.points = append(l.points, point{nines(q.q), result.Summary{N: 1, Median: q.us, Min: q.us, Max: q.us}, false})
			last = max(last, nines(q.q))
		}
		l.noMarks = len(l.points) > 6
		if len(l.points) > 1 {
			lines = append(lines, l)
		}
	}
	f := &figure{file: "latency.svg", title: "Request and response of one byte over one TCP connection", sub: strings.Replace(d.sub(link(bed), []result.Bed{bed}, d.candidates, result.RR1), ", whiskers from lowest to highest", "", 1)}
	p := newPlot("share of the requests that took no longer", "round trip, µs")
	p.Y.Scale, p.Y.Tick.Marker = plot.LogScale{}, logTicks{}
	var at []float64
	var names []string
	for _, t := range []struct {
		q    float64
		name string
	}{{0, "0"}, {0.5, "50 %"}, {0.9, "90 %"}, {0.99, "99 %"}, {0.999, "99.9 %"}, {0.9999, "99.99 %"}, {0.99999, "99.999 %"}} {
		if v := nines(t.q); v <= last+0.01 {
			at, names = append(at, v), append(names, t.name)
		}
	}
	return f.fill(p, lines, ticks(at, names))
}

// apart is the distance between the marks of two lines at the same x.
const apart vg.Length = 4

// fill completes a figure of lines; those without points are left out. It returns nil where nothing is left.
func (f *figure) fill(p *plot.Plot, lines []line, x plot.ConstantTicks) *figure {
	p.X.Tick.Marker = x
	left, right, low, high := math.Inf(1), math.Inf(-1), math.Inf(1), 0.0
	f.desc = fmt.Sprintf("%s: %s against %s.", f.title, p.Y.Label.Text, p.X.Label.Text)
	lines = slices.DeleteFunc(lines, func(l line) bool { return len(l.points) == 0 })
	for i, l := range lines {
		if !l.noMarks {
			l.aside = apart * (vg.Length(i) - vg.Length(len(lines)-1)/2)
		}
		f.legend = append(f.legend, entry{l.name, l})
		p.Add(l)
		f.desc += " " + l.name + ":"
		for j, pt := range l.points {
			left, right = min(left, pt.x), max(right, pt.x)
			low, high = min(low, pt.s.Min, pt.s.Median), max(high, pt.s.Max, pt.s.Median)
			if j > 0 {
				f.desc += ","
			}
			f.desc += " " + number(pt.s.Median)
		}
		f.desc += "."
	}
	if len(f.legend) == 0 {
		return nil
	}
	if right == left {
		left, right = left*0.9, right*1.1+0.1
	}
	p.X.Min, p.X.Max = left, right
	if _, log := p.Y.Scale.(plot.LogScale); log {
		p.Y.Min, p.Y.Max = decadeTicks(low, high)
	} else {
		p.Y.Min, p.Y.Max = min(0, low), high*1.05
	}
	f.plot = p
	return f
}

// decadeTicks widens a range to the next of 1, 2, 5, 10 on either side.
func decadeTicks(low, high float64) (float64, float64) {
	power := math.Pow(10, math.Floor(math.Log10(low)))
	from := power
	for _, m := range []float64{2, 5} {
		if m*power <= low {
			from = m * power
		}
	}
	power = math.Pow(10, math.Floor(math.Log10(high)))
	for _, m := range []float64{1, 2, 5, 10} {
		if m*power >= high {
			return from, m * power
		}
	}
	return from, 10 * power
}

// Plot implements plot.Plotter.
func (l line) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	var path []vg.Point
	for _, pt := range l.points {
		path = append(path, vg.Point{X: x(pt.x) + l.aside, Y: y(pt.s.Median)})
	}
	c.StrokeLines(l.stroke(), path)
	for i, at := range path {
		whisker(c, l.look.fill, at.X, y(l.points[i].s.Min), y(l.points[i].s.Max), 3)
		switch {
		case l.noMarks:
		case l.points[i].full:
			ground := l.glyph()
			ground.Color = white()
			c.SetColor(ground.Color)                     // a glyph's own drawing takes the color that is set
			draw.CircleGlyph{}.DrawGlyph(&c, ground, at) // so that the line does not cross the hollow
			c.SetLineStyle(draw.LineStyle{Color: l.look.fill, Width: 1.2})
			hollow(l.look.mark).DrawGlyph(&c, l.glyph(), at)
		default:
			c.SetColor(l.look.fill)
			l.look.mark.DrawGlyph(&c, l.glyph(), at) // not Canvas.DrawGlyph, which leaves out marks at the edge
		}
	}
}

// Thumbnail implements plot.Thumbnailer.
func (l line) Thumbnail(c *draw.Canvas) {
	y := (c.Min.Y + c.Max.Y) / 2
	c.StrokeLine2(l.stroke(), c.Min.X, y, c.Max.X, y)
	if !l.noMarks {
		c.DrawGlyph(l.glyph(), vg.Point{X: (c.Min.X + c.Max.X) / 2, Y: y})
	}
}

func (l line) stroke() draw.LineStyle {
	return draw.LineStyle{Color: l.look.fill, Width: 1.6, Dashes: l.look.dashes}
}

func (l line) glyph() draw.GlyphStyle {
	return draw.GlyphStyle{Color: l.look.fill, Radius: 3.2, Shape: l.look.mark}
}

// GlyphBoxes implements plot.GlyphBoxer, so that marks and whiskers at the edge are not cut.
func (l line) GlyphBoxes(p *plot.Plot) []plot.GlyphBox {
	var boxes []plot.GlyphBox
	for _, pt := range l.points {
		boxes = append(boxes, plot.GlyphBox{
			X: p.X.Norm(pt.x), Y: p.Y.Norm(pt.s.Median),
			Rectangle: vg.Rectangle{Min: vg.Point{X: min(0, l.aside) - 4, Y: -4}, Max: vg.Point{X: max(0, l.aside) + 4, Y: 4}},
		})
	}
	return boxes
}
