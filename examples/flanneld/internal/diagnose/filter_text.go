package diagnose

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// parseSave reads what iptables-save prints of one table (iptables-extensions(8)).
func parseSave(text, name string, v6 bool) (f filter) {
	f = filter{name: name, v6: v6, chains: make(map[string]*chain)}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "*"):
			f.place(line[1:])
		case strings.HasPrefix(line, ":"):
			words := append(strings.Fields(line[1:]), "", "")
			f.chains[words[0]] = &chain{drop: words[1] == "DROP"}
		case strings.HasPrefix(line, "-A "):
			words := splitRule(line)
			if c := f.chains[words[1]]; c != nil && len(words) > 2 {
				f.add(c, f.parseRule(words[2:]))
			}
		}
	}
	return f
}

// place says where the packets that are forwarded meet a table of iptables. In the table
// nat nothing may be dropped.
func (f *filter) place(table string) {
	if f.kept = table == "filter"; !f.kept {
		f.name += " " + table
	}
	switch table {
	case "filter", "security":
		f.base = []string{"FORWARD"}
	case "mangle":
		f.base, f.before = []string{"FORWARD"}, []string{"PREROUTING"}
	case "raw":
		f.before = []string{"PREROUTING"}
	}
}

// splitRule splits a rule into words: "double quotes" hold one together.
func splitRule(line string) (words []string) {
	var word strings.Builder
	quoted, started, escaped := false, false, false
	for _, c := range line {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case c == '\\' && quoted:
			escaped = true
		case c == '"':
			quoted, started = !quoted, true
		case c == ' ' && !quoted:
			if started {
				words = append(words, word.String())
			}
			word.Reset()
			started = false
		default:
			word.WriteRune(c)
			started = true
		}
	}
	if started {
		words = append(words, word.String())
	}
	return words
}

// parseRule reads the words of a rule after the chain's name.
func (f filter) parseRule(words []string) (r rule) {
	negated := false
	for i := 0; i < len(words); i++ {
		value := ""
		if i+1 < len(words) {
			value = words[i+1]
		}
		var c cond
		switch words[i] {
		case "!":
			negated = true
			continue
		case "-s", "-d":
			c = unknown
			if p, err := parsePrefix(value); err == nil {
				c = addrIn(words[i] == "-s", p)
				if words[i] == "-d" && p.IsSingleIP() && !negated {
					r.dst.addr = p.Addr()
				}
			}
		case "-i", "-o":
			c = linkIs(words[i] == "-o", value)
		case "--ctstate", "--state":
			states := strings.Split(value, ",")
			c = func(packet) answer { return truth(slices.Contains(states, "NEW")) }
		case "-p":
			c = func(packet) answer {
				return truth(slices.Contains([]string{"tcp", "6", "all", "0"}, strings.ToLower(value)))
			}
		case "--dport":
			c = unknown
			if port, err := strconv.ParseUint(value, 10, 16); err == nil {
				c = portIn(uint16(port), uint16(port))
				if !negated {
					r.dst.port = uint16(port)
				}
			}
		case "--mark":
			c, r.asks = markIs(value), true
		case "-m", "--comment":
		case "-j", "-g":
			r.do, r.to = f.target(words[i] == "-g", value)
			r.marks = r.to == "" && xtMarks(value)
			return r // what follows belongs to the target
		default:
			c, value = unknown, "" // of what comes next, the same will be thought
		}
		if c != nil {
			r.conds = append(r.conds, not(negated, c))
		}
		negated = false
		if value != "" || words[i] == "--comment" {
			i++
		}
	}
	return r
}

// target is what a rule does.
func (f filter) target(goes bool, name string) (do action, to string) {
	switch {
	case goes:
		return goTo, name
	case f.chains[name] != nil:
		return jump, name
	}
	return xtTarget(name), ""
}

// markIs asks for a packet's mark, which is 0 unless somebody has marked it.
func markIs(value string) cond {
	word, _, _ := strings.Cut(value, "/")
	mark, err := strconv.ParseUint(word, 0, 32)
	if err != nil {
		return unknown
	}
	return noMark(mark == 0)
}

// parsePrefix reads 10.5.0.0/16, 10.5.0.1, or 10.5.0.0/255.255.0.0.
func parsePrefix(s string) (netip.Prefix, error) {
	addr, length, ok := strings.Cut(s, "/")
	a, err := netip.ParseAddr(addr)
	switch {
	case err != nil:
		return netip.Prefix{}, err
	case !ok:
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	if mask, err := netip.ParseAddr(length); err == nil {
		bits := 0
		for _, b := range mask.AsSlice() {
			for ; b != 0; b <<= 1 {
				bits++
			}
		}
		return a.Prefix(bits)
	}
	return netip.ParsePrefix(s)
}
