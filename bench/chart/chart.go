// Package chart draws what the benchmark has measured as SVG files that a README can show: on GitHub, in its light and its
// dark theme, without fonts of their own.
//
// The same run gives the same bytes, so that a chart that is committed changes only when its numbers do.
package chart

import (
	"bytes"
	"fmt"
	"html"
	"os"
	"path/filepath"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"

	"github.com/flannelkit/flannelkit/bench/result"
)

// Size of every chart, in points: as wide as GitHub shows a picture in a README without shrinking it.
const (
	width  vg.Length = 640
	height vg.Length = 330
	margin vg.Length = 10
)

// A figure is one chart: the plot, its legend beside it, and its words.
type figure struct {
	file   string // such as "cpu.svg"
	title  string // one line
	sub    string // bed, runs: one line
	desc   string // what it shows, for those who can't see it
	plot   *plot.Plot
	legend []entry
}

// An entry is a line of a legend.
type entry struct {
	name  string
	thumb plot.Thumbnailer
}

// Write draws the charts of a run into dir, which it makes if need be, and returns the names of the files it wrote:
//
//   - throughput.svg: TCP with one stream, by link and candidate
//   - cpu.svg: processors per Gbit/s at a fixed rate, less those of the plain link
//   - sizes.svg: highest loss-free rate of UDP packets by their size
//   - latency.svg: how long request and response take, up to the slowest in ten thousand
//   - peers.svg: highest loss-free rate of a host by the number of its peers
//   - engines.svg: rates of the udp engine by the number of engines
//
// A chart that the run has no data for is left out, and so are samples that do not count. All but the first two show one
// link: M2 at MTU 1500 if it was measured, which is nearest to real machines, else the first that was. Existing files of
// these names are replaced. Errors are those of the file system.
func Write(dir string, r *result.Run) ([]string, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("chart: write: %w", err)
	}
	var written []string
	for _, f := range figures(r) {
		name := filepath.Join(dir, f.file)
		if err := os.WriteFile(name, f.svg(), 0o644); err != nil {
			return written, fmt.Errorf("chart: write: %w", err)
		}
		written = append(written, name)
	}
	return written, nil
}

// figures draws all charts that the run has data for.
func figures(r *result.Run) []*figure {
	d := newData(r)
	var all []*figure
	for _, draw := range []func() *figure{d.throughput, d.cpu, d.sizes, d.latency, d.peers, d.engines} {
		if f := draw(); f != nil {
			all = append(all, f)
		}
	}
	return all
}

// family is a list because nobody has to have the fonts that the chart was laid out with: Arial and Helvetica, which
// follow, are as wide.
const (
	sans   = "Liberation Sans"
	family = sans + ", Arial, Helvetica, sans-serif"
)

// svg renders the figure.
func (f *figure) svg() []byte {
	c := vgsvg.NewWith(vgsvg.UseWH(width, height))
	f.draw(draw.New(c))
	var b bytes.Buffer
	if _, err := c.WriteTo(&b); err != nil { // to memory
		return nil
	}
	out := strings.ReplaceAll(b.String(), "font-family:"+sans, "font-family:"+family)
	out = strings.ReplaceAll(out, ";font-variant:none", "")
	out = strings.Replace(out, "<svg ", `<svg role="img" aria-labelledby="title desc" `, 1)
	if at := strings.Index(out, "<svg "); at >= 0 {
		end := at + strings.Index(out[at:], ">") + 1
		head := fmt.Sprintf("\n<title id=\"title\">%s</title>\n<desc id=\"desc\">%s</desc>",
			html.EscapeString(f.title+". "+f.sub), html.EscapeString(f.desc))
		out = out[:end] + head + out[end:]
	}
	return []byte(out)
}

// draw lays the figure out: its words on top, the legend to the right, the plot in what is left.
func (f *figure) draw(c draw.Canvas) {
	c.SetColor(white())
	c.Fill(c.Rectangle.Path())
	area := draw.Crop(c, margin, -margin, margin, -margin)
	area = f.words(area)
	column := draw.Canvas{Canvas: c.Canvas, Rectangle: area.Rectangle}
	legend := plot.NewLegend()
	legend.TextStyle = style(9, text.XLeft)
	legend.Top, legend.YPosition = true, draw.PosCenter
	legend.Padding = 3
	legend.ThumbnailWidth = 18
	for _, e := range f.legend {
		legend.Add(e.name, e.thumb)
	}
	wide := legend.Rectangle(column).Size().X
	column.Min.X = column.Max.X - wide
	legend.Left = true
	legend.Draw(column)
	f.plot.Draw(draw.Crop(area, 0, -wide-margin, 0, 0))
}

// words writes title and subtitle, and returns the area below them.
func (f *figure) words(area draw.Canvas) draw.Canvas {
	title := style(13, text.XLeft)
	title.Font.Weight = bold
	title.YAlign = text.YTop
	area.FillText(title, vg.Point{X: area.Min.X, Y: area.Max.Y}, f.title)
	sub := style(9.5, text.XLeft)
	sub.Color, sub.YAlign = soft(), text.YTop
	area.FillText(sub, vg.Point{X: area.Min.X, Y: area.Max.Y - 18}, f.sub)
	return draw.Crop(area, 0, 0, 0, -40)
}

// style is a text style of the charts.
func style(size vg.Length, align text.XAlignment) text.Style {
	return text.Style{
		Color: ink(), Handler: plot.DefaultTextHandler, XAlign: align,
		Font: font.From(font.Font{Typeface: "Liberation", Variant: "Sans"}, size),
	}
}
