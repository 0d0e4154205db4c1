package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
)

// shells are those that there is a completion script for.
func shells() []string { return []string{"bash", "zsh", "fish"} }

// runCompletion prints a script. The scripts hold all that they offer, so that a key
// pressed in a shell starts no program; they are made anew for each version.
func runCompletion(_ context.Context, i invocation) (int, error) {
	var b bytes.Buffer
	switch {
	case len(i.args) != 1:
		return exitFailed, fmt.Errorf("completion: for which shell? (flanneld completion %s)", strings.Join(shells(), "|"))
	case i.args[0] == "bash":
		bashCompletion(&b)
	case i.args[0] == "zsh":
		zshCompletion(&b)
	case i.args[0] == "fish":
		fishCompletion(&b)
	default:
		return exitFailed, fmt.Errorf("completion: no script for %q (there are %s)", i.args[0], strings.Join(shells(), ", "))
	}
	_, err := i.stdout.Write(b.Bytes())
	return exitOK, err
}

// A valueKind is what a flag's value can be completed with.
type valueKind int

const (
	anyValue    valueKind = iota // nothing is known of it
	switchValue                  // none, or true and false behind =
	bareSwitch                   // none
	fileValue
	dirValue
	interfaceValue
	enumValue
)

// A completion is one flag as the scripts offer it.
type completion struct {
	name, about string
	kind        valueKind
	enum        []string
}

// completions returns the flags of a command, without those that have no effect.
func (c command) completions() []completion {
	var all []completion
	for _, f := range c.flags {
		all = append(all, newCompletion(f.name, f.arg, f.help, bareSwitch))
	}
	if !c.common {
		return all
	}
	for _, f := range flagTable() {
		if !f.idle {
			all = append(all, newCompletion(f.name, f.arg, f.help, switchValue))
		}
	}
	return all
}

// newCompletion finds out of what a flag's help calls its value how to complete it.
func newCompletion(name, arg, help string, without valueKind) completion {
	for _, end := range []string{"; ", ". ", ": ", " ("} {
		help, _, _ = strings.Cut(help, end)
	}
	f := completion{name: name, about: help}
	switch {
	case arg == "":
		f.kind = without
	case arg == "FILE", strings.HasPrefix(arg, "FILE|"):
		f.kind = fileValue
	case arg == "DIR":
		f.kind = dirValue
	case strings.HasPrefix(arg, "NAME|IP"):
		f.kind = interfaceValue
	case strings.Contains(arg, "|") && arg == strings.ToLower(arg):
		f.kind, f.enum = enumValue, strings.Split(arg, "|")
	}
	return f
}

// named are the commands that have a name.
func named() []command {
	return slices.DeleteFunc(commandTable(), func(c command) bool { return c.name == "" })
}

// about is a command's help in one line.
func (c command) about() string {
	line, _, _ := strings.Cut(c.help, "\n")
	line, _, _ = strings.Cut(line, ";")
	line, _, _ = strings.Cut(line, " (")
	return line
}

// bashCompletion needs bash 4.4 and nothing else: the package bash-completion only
// finds the script by its name.
func bashCompletion(w io.Writer) {
	fmt.Fprint(w, `# bash completion for flanneld, made by: flanneld completion bash

_flanneld() {
  local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
  local command='' flag='' before='' equals='' words=''
  COMPREPLY=()
  if ((COMP_CWORD > 1)) && [[ ${COMP_WORDS[1]} != -* ]]; then
    command=${COMP_WORDS[1]}
  fi

  # -flag VALUE, or -flag=VALUE, which is three words where = is in COMP_WORDBREAKS.
  if [[ $cur == -*=* ]]; then
    flag=${cur%%=*} before=${cur%%=*}= cur=${cur#*=} equals=1
  elif [[ $cur == = ]]; then
    flag=$prev cur='' equals=1
  elif [[ $prev == = ]] && ((COMP_CWORD > 2)); then
    flag=${COMP_WORDS[COMP_CWORD-2]} equals=1
  elif [[ $prev == -* ]]; then
    flag=$prev
  fi
  flag=${flag#-} flag=${flag#-}
`)
	fmt.Fprint(w, "  case $flag in\n")
	byBody := make(map[string][]string) // names of flags
	var bodies []string
	for _, c := range commandTable() {
		for _, f := range c.completions() {
			body := f.bash()
			if body == "" || slices.Contains(byBody[body], f.name) {
				continue
			}
			if byBody[body] == nil {
				bodies = append(bodies, body)
			}
			byBody[body] = append(byBody[body], f.name)
		}
	}
	for _, body := range bodies {
		fmt.Fprintf(w, "    %s)%s\n", strings.Join(byBody[body], "|"), body)
	}
	fmt.Fprint(w, "  esac\n\n  case $command in\n")
	for _, c := range commandTable() {
		words := slices.Clone(c.words)
		for _, f := range c.completions() {
			words = append(words, "-"+f.name)
		}
		name := c.name
		if name == "" {
			name = "''"
		}
		fmt.Fprintf(w, "    %s) words='%s' ;;\n", name, strings.Join(words, " "))
	}
	var names []string
	for _, c := range named() {
		names = append(names, c.name)
	}
	fmt.Fprintf(w, `  esac
  if ((COMP_CWORD == 1)); then # commands come first
    words+=' %s'
  fi
  if [[ $cur == --* ]]; then # the same flags with two dashes
    words=" $words" words=${words// -/ --}
  fi
`, strings.Join(names, " "))
	fmt.Fprint(w, `  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -F _flanneld flanneld
`)
}

// bash returns what the script does for a flag's value, if there is something to do.
func (f completion) bash() string {
	give := func(args string) string {
		return "\n      mapfile -t COMPREPLY < <(compgen -P \"$before\" " + args + " -- \"$cur\")\n      return ;;"
	}
	// Names with spaces are quoted, and directories get a slash, by readline itself.
	files := func(args string) string {
		return "\n      compopt -o filenames 2>/dev/null" + give(args)
	}
	switch f.kind {
	case switchValue:
		return "\n      if [[ $equals ]]; then\n        mapfile -t COMPREPLY < <(compgen -P \"$before\" -W 'true false' -- \"$cur\")\n        return\n      fi ;;"
	case fileValue:
		return files("-f")
	case dirValue:
		return files("-d")
	case interfaceValue:
		return give(`-W "$(cd /sys/class/net 2>/dev/null && echo *)"`)
	case enumValue:
		return give("-W '" + strings.Join(f.enum, " ") + "'")
	case anyValue:
		return "\n      return ;;"
	default:
		return ""
	}
}

func zshCompletion(w io.Writer) {
	fmt.Fprint(w, `#compdef flanneld
# zsh completion for flanneld, made by: flanneld completion zsh

_flanneld_interfaces() {
  local -a names=(/sys/class/net/*(N:t))
  compadd -a names
}

_flanneld() {
  local -a commands common
  commands=(
`)
	for _, c := range named() {
		fmt.Fprintf(w, "    '%s:%s'\n", c.name, zshQuote(c.about()))
	}
	fmt.Fprint(w, "  )\n  common=(\n")
	for _, f := range commandTable()[0].completions() {
		fmt.Fprintf(w, "    %s\n", f.zsh())
	}
	fmt.Fprint(w, `  )
  if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then
    _describe -t commands command commands
    return
  fi
  case $words[2] in
    -*) _arguments $common ;;
`)
	for _, c := range named() {
		var specs []string
		for _, f := range c.completions() {
			if len(specs) < len(c.flags) {
				specs = append(specs, f.zsh())
			}
		}
		if c.common {
			specs = append(specs, "$common")
		}
		if len(c.words) > 0 {
			specs = append(specs, "'1:"+strings.ToLower(c.args)+":("+strings.Join(c.words, " ")+")'")
		}
		if len(specs) > 0 {
			fmt.Fprintf(w, "    %s)\n      shift words\n      ((CURRENT--))\n      _arguments %s ;;\n", c.name, strings.Join(specs, " \\\n        "))
		}
	}
	fmt.Fprint(w, `  esac
}

if [[ $funcstack[1] == _flanneld ]]; then
  _flanneld "$@" # read by the completion system
else
  compdef _flanneld flanneld # by: source <(flanneld completion zsh)
fi
`)
}

// zsh returns a flag as _arguments takes it.
func (f completion) zsh() string {
	name, value := "-"+f.name+"=", ""
	switch f.kind {
	case switchValue:
		name, value = "-"+f.name+"=-", "::value:(true false)"
	case bareSwitch:
		name = "-" + f.name
	case anyValue:
		value = ":value: "
	case fileValue:
		value = ":file:_files"
	case dirValue:
		value = ":directory:_files -/"
	case interfaceValue:
		value = ":interface:_flanneld_interfaces"
	case enumValue:
		value = ":value:(" + strings.Join(f.enum, " ") + ")"
	}
	if f.kind == interfaceValue || f.name == "iface-regex" {
		name = "*" + name // may be given again
	}
	return "'" + name + "[" + zshQuote(f.about) + "]" + value + "'"
}

// zshQuote makes a text part of a quoted specification.
func zshQuote(text string) string {
	return strings.NewReplacer("'", `'\''`, ":", `\:`, "[", `\[`, "]", `\]`).Replace(text)
}

func fishCompletion(w io.Writer) {
	fmt.Fprint(w, `# fish completion for flanneld, made by: flanneld completion fish

# Whether the command is one of these; '' is none, the daemon.
function __flanneld_command
    set -l words (commandline -opc)
    set -l command ''
    if set -q words[2]; and not string match -q -- '-*' $words[2]
        set command $words[2]
    end
    contains -- "$command" $argv
end

# Whether nothing is given yet, so that a command may follow.
function __flanneld_first
    test (count (commandline -opc)) -eq 1
end

complete -c flanneld -f
`)
	var common []string
	for _, c := range commandTable() {
		if c.common {
			common = append(common, fishQuote(c.name))
		}
		if c.name == "" {
			continue
		}
		fmt.Fprintf(w, "complete -c flanneld -n __flanneld_first -a %s -d %s\n", c.name, fishQuote(c.about()))
		for _, word := range c.words {
			fmt.Fprintf(w, "complete -c flanneld -n '__flanneld_command %s' -a %s\n", c.name, word)
		}
		for _, f := range c.completions()[:len(c.flags)] {
			fmt.Fprintf(w, "complete -c flanneld -n '__flanneld_command %s' %s\n", c.name, f.fish())
		}
	}
	for _, f := range commandTable()[0].completions() {
		fmt.Fprintf(w, "complete -c flanneld -n \"__flanneld_command %s\" %s\n", strings.Join(common, " "), f.fish())
	}
}

// fish returns a flag as fish's complete takes it.
func (f completion) fish() string {
	option := "-o " + f.name
	if len(f.name) == 1 {
		option = "-s " + f.name
	}
	switch f.kind {
	case switchValue, bareSwitch:
	case anyValue:
		option += " -x"
	case fileValue:
		option += " -rF"
	case dirValue:
		option += " -x -a '(__fish_complete_directories)'"
	case interfaceValue:
		option += " -x -a '(ls /sys/class/net 2>/dev/null)'"
	case enumValue:
		option += " -x -a '" + strings.Join(f.enum, " ") + "'"
	}
	return option + " -d " + fishQuote(f.about)
}

func fishQuote(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(text) + "'"
}
