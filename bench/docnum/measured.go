package docnum

import (
	"regexp"
	"strings"
)

// A hit is a number that looks measured and has no source.
type hit struct {
	at   int
	text string
}

// Patterns of numbers and of the units that measurements of performance have. Seconds count with decimals only: whole
// ones are settings as a rule.
const (
	number    = `(?:[-+~<>]?\d[\d,]*(?:\.\d+)?|` + "\x01+" + `)`
	between   = `(?:\s*\.\.\s*|\s*[-–]\s*|\s*->\s*|,?\s+(?:to|and|or|of|against|instead of|in)\s+|,\s+)`
	unit      = `(?:[GMk]?bit/s|[GMk]bps|[kM]?pps|(?:1,000 )?packets/s|packets per second|[µμu]s|ns|ms|cores?/Gbit/s|MiB|[GMk]B/s|MiB/s|%|[x×] (?:VXLAN|faster|slower)|times (?:VXLAN|faster|slower|as|that of|the (?:link|rate)|flannel)|of (?:kernel )?(?:VXLAN|native|flannel's))`
	unitAfter = `(?:[^\w/]|$)`
)

// constMark is the comment after a number that says it is a setting.
func constMark() *regexp.Regexp { return regexp.MustCompile(`^<!--const\b(?s:.*?)-->`) }

// listOf matches numbers, several perhaps, before a unit.
func listOf(unit string) *regexp.Regexp {
	return regexp.MustCompile(`(?:^|[^\w.,:/\x01-])(` + number + `(?:` + between + number + `)*)(?:\s*\([^()\n]*\))?` + unit + unitAfter)
}

// measured finds the numbers with a unit of performance, and bare ones in tables about it.
func measured(text string) []hit {
	var hits []hit
	isConst, oneNumber := constMark(), regexp.MustCompile(number)
	withUnit, inSeconds := listOf(`[\s\x{a0}-]?\s?`+unit), listOf(`[ \x{a0}\n]s`)
	for _, pattern := range []*regexp.Regexp{withUnit, inSeconds} {
		for from := 0; from < len(text); {
			m := pattern.FindStringSubmatchIndex(text[from:])
			if m == nil {
				break
			}
			list, end := text[from+m[2]:from+m[3]], from+m[1]
			whole := strings.Join(strings.Fields(strings.ReplaceAll(text[from+m[2]:end], string(sourced), "")), " ")
			start := from + m[2]
			from += max(m[3], m[0]+1)
			if isConst.MatchString(text[end:]) || isConst.MatchString(text[end-1:]) {
				continue
			}
			if pattern == inSeconds && !strings.Contains(list, ".") {
				continue
			}
			for _, n := range oneNumber.FindAllStringIndex(list, -1) {
				if list[n[0]] != byte(sourced) {
					hits = append(hits, hit{start + n[0], whole})
					break
				}
			}
		}
	}
	return append(hits, cells(text)...)
}

// cells finds table cells that hold nothing but numbers where the row's first cell or the column's head names a unit, or
// where the numbers have decimals.
func cells(text string) []hit {
	unitAlone := regexp.MustCompile(`(?:^|[\s,(/])` + unit + unitAfter)
	bareCell := regexp.MustCompile(`^[\s\d.,()^*~+<>=/–-]*\d[\s\d.,()^*~+<>=/–\x01-]*$`)
	decimals := regexp.MustCompile(`\d\.\d`)
	var hits []hit
	var heads []string
	offset := 0
	for line := range strings.Lines(text) {
		start := offset
		offset += len(line)
		if !strings.HasPrefix(strings.TrimSpace(line), "|") {
			heads = nil
			continue
		}
		row := strings.Split(line, "|")
		if heads == nil {
			heads = row
			continue
		}
		at := start + len(row[0]) + 1
		for i, cell := range row[1:] {
			i++
			about := unitAlone.MatchString(row[1]) || i < len(heads) && unitAlone.MatchString(heads[i])
			if bareCell.MatchString(cell) && (about || decimals.MatchString(cell)) {
				hits = append(hits, hit{at, strings.TrimSpace(cell)})
			}
			at += len(cell) + 1
		}
	}
	return hits
}
