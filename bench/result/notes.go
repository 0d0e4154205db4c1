package result

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A phrase is several notes that differ only in their numbers: "1.87..1.93 instead of 2 Gbit/s".
type phrase struct {
	words  []string // one more than numbers
	ranges [][2]string
	count  int
}

// phrases joins texts that differ only in their numbers, in the order in which they first appear.
func phrases(texts []string) []*phrase {
	var out []*phrase
	byWords := map[string]*phrase{}
	for _, t := range texts {
		words, numbers := splitNumbers(t)
		key := strings.Join(words, "\x00")
		p := byWords[key]
		if p == nil {
			p = &phrase{words: words}
			for _, n := range numbers {
				p.ranges = append(p.ranges, [2]string{n, n})
			}
			byWords[key] = p
			out = append(out, p)
		}
		p.count++
		for i, n := range numbers {
			if less(n, p.ranges[i][0]) {
				p.ranges[i][0] = n
			}
			if less(p.ranges[i][1], n) {
				p.ranges[i][1] = n
			}
		}
	}
	return out
}

func less(a, b string) bool {
	x, _ := strconv.ParseFloat(a, 64)
	y, _ := strconv.ParseFloat(b, 64)
	return x < y
}

// String writes the phrase with the range of each number that was not always the same.
func (p *phrase) String() string {
	var b strings.Builder
	for i, w := range p.words {
		b.WriteString(w)
		if i >= len(p.ranges) {
			break
		}
		b.WriteString(p.ranges[i][0])
		if p.ranges[i][0] != p.ranges[i][1] {
			b.WriteString(".." + p.ranges[i][1])
		}
	}
	return b.String()
}

// splitNumbers takes the numbers out of a text. A digit in a name, as in "eth0", is none.
func splitNumbers(text string) (words, numbers []string) {
	start := 0
	for i := 0; i < len(text); i++ {
		if !digit(text[i]) || i > 0 && letter(text[i-1]) {
			continue
		}
		end := i
		for end < len(text) && (digit(text[end]) || text[end] == '.' && end+1 < len(text) && digit(text[end+1])) {
			end++
		}
		words, numbers = append(words, text[start:i]), append(numbers, text[i:end])
		start, i = end, end
	}
	return append(words, text[start:]), numbers
}

func digit(c byte) bool { return c >= '0' && c <= '9' }

func letter(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == '-' || digit(c)
}

// notes explains the cells that are marked, in one line each at most; cells of one test that have the same to say share
// one. The last lines sum up what was discarded, and how quiet the machine was when it counted.
func (r *Run) notes() []string {
	var out []string
	for _, bed := range r.Beds() {
		for _, test := range Measured() {
			var texts []string
			who := map[string][]string{}
			for _, c := range r.Candidates {
				text := r.cellNote(bed, test, c)
				if text == "" {
					continue
				}
				if who[text] == nil {
					texts = append(texts, text)
				}
				who[text] = append(who[text], c)
			}
			for _, text := range texts {
				out = append(out, fmt.Sprintf("%s %s, %s: %s", bed, test.Title(), strings.Join(who[text], ", "), text))
			}
		}
	}
	return append(out, r.disturbance()...)
}

// cellNote says what is wrong with a cell, "" for nothing.
func (r *Run) cellNote(bed Bed, test Test, candidate string) string {
	var notes, reasons []string
	valid, good, failed := 0, map[int]bool{}, map[int]bool{}
	samples := r.of(bed, test, candidate)
	for _, s := range samples {
		if s.Valid() {
			valid++
			good[s.Run] = true
			if s.Note != "" {
				notes = append(notes, s.Note)
			}
		}
	}
	for _, s := range samples {
		if !s.Valid() && !good[s.Run] {
			failed[s.Run] = true
			reasons = append(reasons, s.Discarded)
		}
	}
	var parts []string
	for _, p := range phrases(notes) {
		text := p.String()
		if p.count < valid {
			text = fmt.Sprintf("%s (%d of %d runs)", text, p.count, valid)
		}
		parts = append(parts, text)
	}
	if want := r.expected(bed, test); len(failed) > 0 {
		verb := "were"
		if len(failed) == 1 {
			verb = "was"
		}
		parts = append(parts, fmt.Sprintf("%d of %d runs %s discarded: %s", len(failed), want, verb, joinPhrases(reasons)))
	} else if len(samples) > 0 && len(good) < want {
		parts = append(parts, fmt.Sprintf("%d of %d runs have no result", want-len(good), want))
	}
	return strings.Join(parts, "; ")
}

func joinPhrases(texts []string) string {
	var parts []string
	for _, p := range phrases(texts) {
		parts = append(parts, p.String())
	}
	return strings.Join(parts, ", or ")
}

// quietSteal and quietOthers are what is not worth a note.
const (
	quietSteal  = 0.005
	quietOthers = 0.05
)

// disturbance counts the samples that were discarded, by reason, and says how much was taken from those that count.
func (r *Run) disturbance() []string {
	var reasons []string
	var steals []float64
	steal, others := 0.0, 0.0
	type key struct {
		cell
		run int
	}
	again := map[key]bool{}
	for i := range r.Samples {
		if s := &r.Samples[i]; s.Valid() {
			steals = append(steals, s.Steal)
			steal, others = max(steal, s.Steal), max(others, s.Others)
			again[key{cell{s.Bed(), s.Test, s.Candidate}, s.Run}] = true
		} else {
			reasons = append(reasons, s.Discarded)
		}
	}
	var out []string
	if len(reasons) > 0 {
		repeated := 0
		for i := range r.Samples {
			if s := &r.Samples[i]; !s.Valid() && again[key{cell{s.Bed(), s.Test, s.Candidate}, s.Run}] {
				repeated++
			}
		}
		var parts []string
		all := phrases(reasons)
		slices.SortStableFunc(all, func(a, b *phrase) int { return b.count - a.count })
		for _, p := range all {
			parts = append(parts, fmt.Sprintf("%s (%d)", p, p.count))
		}
		out = append(out, fmt.Sprintf("%d of %d samples were discarded, and %d of them measured again with success: %s",
			len(reasons), len(r.Samples), repeated, strings.Join(parts, ", ")))
	}
	if steal >= quietSteal {
		out = append(out, fmt.Sprintf("among the samples that count, the hypervisor took up to %.0f %% of the processors' time, in the median %.1f %%", steal*100, 100*Summarize(steals).Median))
	}
	if others >= quietOthers {
		out = append(out, fmt.Sprintf("among the samples that count, other programs used up to %.2f processors", others))
	}
	return out
}
