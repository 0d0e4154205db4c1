package chart

import (
	"image/color"
	"math"
	"strconv"
	"strings"

	xfont "golang.org/x/image/font"
	"gonum.org/v1/plot"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"github.com/flannelkit/flannelkit/bench/result"
)

const bold = xfont.WeightBold

// The colours of what is not data. The panel is white, so that a chart reads the same on a dark page.
func white() color.Color { return rgb(0xffffff) }
func ink() color.Color   { return rgb(0x1f2328) }
func soft() color.Color  { return rgb(0x59636e) }
func faint() color.Color { return rgb(0xe1e4e8) }

func rgb(v uint32) color.Color { return color.NRGBA{uint8(v >> 16), uint8(v >> 8), uint8(v), 255} }

// A look is how a candidate appears in all charts: by colour, and in lines also by mark and dashes, for those to whom
// colours say little and for paper.
type look struct {
	fill   color.Color
	mark   draw.GlyphDrawer
	dashes []vg.Length
}

// known are the places in the palette of the candidates that most runs have, so that one has the same colour in the
// charts of different runs too.
func known(candidate string) (place int, ok bool) {
	places := map[string]int{
		result.Native: 0, result.VXLAN: 1, result.UDP: 2, "host-gw": 3, "vxlan-backend": 4, "wireguard": 5, "ipip": 6, "flannel": 7,
	}
	name, _, _ := strings.Cut(candidate, ":")
	if strings.HasPrefix(candidate, result.UDP+":") {
		return 0, false // one of several variants
	}
	place, ok = places[name]
	return place, ok
}

// palette is Okabe's and Ito's, which people of every kind of colour vision can tell apart, with grey instead of black and
// wine instead of yellow, which is hardly seen on white; then shades of it.
func palette() []color.Color {
	var all []color.Color
	for _, v := range []uint32{
		0x8c8c8c, 0xe69f00, 0x0072b2, 0x009e73, 0xd55e00, 0xcc79a7, 0x56b4e9, 0x882255,
		0x003f66, 0x7a5500, 0x00553e, 0x7d3600, 0x7b3f60, 0x000000,
	} {
		all = append(all, rgb(v))
	}
	return all
}

// looks gives every candidate its own, those of a known place first.
func looks(candidates []string) map[string]look {
	colours := palette()
	out, taken := map[string]look{}, map[int]bool{}
	for _, c := range candidates {
		if place, ok := known(c); ok && !taken[place] {
			out[c], taken[place] = newLook(colours, place), true
		}
	}
	place := 8 // the places before are the known ones' only, in every run
	for _, c := range candidates {
		if _, ok := out[c]; !ok {
			out[c] = newLook(colours, place)
			place++
		}
	}
	return out
}

func newLook(colours []color.Color, place int) look {
	marks := []draw.GlyphDrawer{
		draw.BoxGlyph{}, draw.PyramidGlyph{}, draw.CircleGlyph{}, draw.BoxGlyph{}, draw.CrossGlyph{}, draw.PyramidGlyph{}, draw.PlusGlyph{}, draw.CircleGlyph{},
	}
	dashes := [][]vg.Length{nil, {6, 2}, nil, {2, 2}, {8, 2, 2, 2}, {4, 4}, {10, 3}, {1, 2}}
	return look{colours[place%len(colours)], marks[place%len(marks)], dashes[place%len(dashes)]}
}

// newPlot is a plot with the charts' fonts, thin axes and horizontal lines. Its axes have names only: the title is the figure's.
func newPlot(x, y string) *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	for axis, name := range map[*plot.Axis]string{&p.X: x, &p.Y: y} {
		axis.Label.Text = name
		axis.Label.TextStyle = style(10, text.XCenter)
		axis.Label.Padding = 4
		axis.Tick.Label.Font = style(9, text.XCenter).Font
		axis.Tick.Label.Color = ink()
		axis.LineStyle.Color, axis.Tick.LineStyle.Color = soft(), soft()
		axis.LineStyle.Width, axis.Tick.LineStyle.Width = 0.5, 0.5
		axis.Tick.Length = 4
	}
	p.Y.Tick.Marker = roundTicks{}
	p.X.Padding, p.Y.Padding = 0, 0
	p.Add(rules{})
	return p
}

// rules are the lines across at the labelled ticks of y.
type rules struct{}

// Plot implements plot.Plotter.
func (rules) Plot(c draw.Canvas, p *plot.Plot) {
	_, y := p.Transforms(&c)
	for _, t := range p.Y.Tick.Marker.Ticks(p.Y.Min, p.Y.Max) {
		if at := y(t.Value); !t.IsMinor() && at >= c.Min.Y && at <= c.Max.Y {
			c.StrokeLine2(draw.LineStyle{Color: faint(), Width: 0.5}, c.Min.X, at, c.Max.X, at)
		}
	}
}

// ticks are given values under given names.
func ticks(values []float64, names []string) plot.ConstantTicks {
	var out plot.ConstantTicks
	for i, v := range values {
		out = append(out, plot.Tick{Value: v, Label: names[i]})
	}
	return out
}

// roundTicks are four to eight multiples of 1, 2 or 5 times a power of ten.
type roundTicks struct{}

// Ticks implements plot.Ticker.
func (roundTicks) Ticks(low, high float64) []plot.Tick {
	if !(high > low) {
		return nil
	}
	power := math.Pow(10, math.Floor(math.Log10((high-low)/4)))
	step := power
	for _, m := range []float64{2, 5} {
		if m*power <= (high-low)/4 {
			step = m * power
		}
	}
	decimals := max(0, -int(math.Floor(math.Log10(step)+1e-9)))
	var out []plot.Tick
	for i := math.Ceil(low/step-1e-9) + 0; i*step <= high*(1+1e-9); i++ { // + 0 makes a plain zero of -0
		label := strconv.FormatFloat(i*step, 'f', decimals, 64)
		if decimals == 0 {
			label = thousands(i * step)
		}
		out = append(out, plot.Tick{Value: i * step, Label: label})
	}
	return out
}

// logTicks are 1, 2 and 5 of each power of ten, written as people do: 20, 1,000.
type logTicks struct{}

// Ticks implements plot.Ticker.
func (logTicks) Ticks(low, high float64) []plot.Tick {
	var out []plot.Tick
	wide := high/low > 1000 // then only 1 is named
	for power := math.Pow(10, math.Floor(math.Log10(low))); power <= high; power *= 10 {
		for _, m := range []float64{1, 2, 5} {
			if v := m * power; v >= low*0.999 && v <= high*1.001 {
				t := plot.Tick{Value: v}
				if m == 1 || !wide {
					t.Label = thousands(v)
				}
				out = append(out, t)
			}
		}
	}
	return out
}

// thousands writes a number with all its decimals, and with commas.
func thousands(v float64) string { return result.Thousands(strconv.FormatFloat(v, 'f', -1, 64)) }

// hollow is what a mark becomes for a point that only says that the path carries no less.
func hollow(mark draw.GlyphDrawer) draw.GlyphDrawer {
	switch mark.(type) {
	case draw.BoxGlyph, draw.CrossGlyph:
		return draw.SquareGlyph{}
	case draw.PyramidGlyph:
		return draw.TriangleGlyph{}
	}
	return draw.RingGlyph{}
}
