package masq

import (
	"fmt"
	"net/netip"
	"strings"
)

// parseSave reads what iptables-save writes of one table: "*nat", then ":CHAIN POLICY
// [packets:bytes]", then "-A CHAIN rule", then "COMMIT". It returns nil if there is
// no such table.
func parseSave(out, name string) (table, error) {
	var t table
	inside := false
	for line := range strings.Lines(out) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == '#':
		case line[0] == '*':
			if inside = line[1:] == name; inside && t == nil {
				t = make(table)
			}
		case !inside:
		case line == "COMMIT":
			inside = false
		case line[0] == ':':
			f := strings.Fields(line[1:])
			if len(f) < 2 {
				return nil, fmt.Errorf("chain without a policy in %q", line)
			}
			c := t.at(f[0])
			if f[1] != "-" {
				c.policy = f[1]
			}
		case strings.HasPrefix(line, "-A "):
			chain, spec, _ := strings.Cut(line[len("-A "):], " ")
			f, err := parseRule(spec)
			if err != nil {
				return nil, err
			}
			c := t.at(chain)
			c.rules = append(c.rules, f)
		default:
			return nil, fmt.Errorf("unknown line %q", line)
		}
	}
	if inside {
		return nil, fmt.Errorf("table %s has no end (was the program killed?)", name)
	}
	for _, c := range t {
		for _, f := range c.rules {
			if to := t[f.target]; to != nil {
				to.refs++
			}
		}
	}
	return t, nil
}

// at returns a chain, a new one if need be.
func (t table) at(name string) *chain {
	c := t[name]
	if c == nil {
		c = new(chain)
		t[name] = c
	}
	return c
}

// parseRule reads a rule without its "-A CHAIN".
func parseRule(spec string) (found, error) {
	f := found{text: spec}
	words, err := split(spec)
	if err != nil {
		return f, fmt.Errorf("rule %q: %w", spec, err)
	}
	not := false
	for i := 0; i < len(words); i++ {
		arg := ""
		if i+1 < len(words) {
			arg = words[i+1]
		}
		used := true // whether the option has taken its argument
		switch words[i] {
		case "!":
			not = true
			continue
		case "-s", "-d":
			prefix, err := netip.ParsePrefix(arg)
			m := match{prefix: prefix, not: not}
			if f.odd = f.odd || err != nil; words[i] == "-s" {
				f.src = m
			} else {
				f.dst = m
			}
		case "-m":
			f.odd = f.odd || arg != "comment" && arg != "mark"
		case "--comment":
			f.comment = arg
		case "--mark":
			f.mark = true
			f.odd = f.odd || not || arg != fmt.Sprintf("%#x/%#[1]x", kubeMark)
		case "-j":
			f.target = arg
		case "-g":
			f.target, f.odd = arg, true
		case "--random-fully":
			f.random, used = true, false
		default:
			f.odd, used = true, false
		}
		not = false
		if used {
			i++
		}
	}
	return f, nil
}

// split cuts a line into words as iptables-restore does: quotes hold a word
// together, and a backslash inside of them makes the next letter literal.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	quoted, open := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quoted && c == '\\' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
		case c == '"':
			quoted, open = !quoted, true
		case c == ' ' && !quoted:
			if open {
				words = append(words, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteByte(c)
			open = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("quote not closed")
	}
	if open {
		words = append(words, word.String())
	}
	return words, nil
}

// String returns the rule as iptables takes it, and as iptables-save writes it.
func (r rule) String() string {
	var b strings.Builder
	add := func(option string, m match) {
		if !m.prefix.IsValid() {
			return
		}
		if m.not {
			b.WriteString("! ")
		}
		b.WriteString(option + " " + m.prefix.String() + " ")
	}
	add("-s", r.src)
	add("-d", r.dst)
	if r.mark {
		fmt.Fprintf(&b, "-m mark --mark %#x/%#[1]x ", kubeMark)
	}
	b.WriteString("-j " + r.target)
	if r.random {
		b.WriteString(" --random-fully")
	}
	return b.String()
}

// restore returns an edit as input for iptables-restore --noflush, which does all of
// it at COMMIT or nothing. Naming a chain with ":" makes it, or empties it.
func (e edit) restore() string {
	var b strings.Builder
	line := func(words ...string) { b.WriteString(strings.Join(words, " ") + "\n") }
	line("*" + e.name)
	if e.fill {
		line(":"+e.chain, "- [0:0]")
		for _, r := range e.rules {
			line("-A", e.chain, r.String())
		}
	}
	for _, f := range e.remove {
		line("-D", e.base, f.text)
	}
	if e.insert {
		line("-I", e.base, fmt.Sprint(e.at+1), "-j", e.chain)
	}
	for _, c := range e.empty {
		line("-F", c)
	}
	for _, c := range e.drop {
		line("-F", c)
	}
	for _, c := range e.drop {
		line("-X", c)
	}
	line("COMMIT")
	return b.String()
}
