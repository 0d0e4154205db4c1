package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadmeConfigurations: what operators copy is what the plugin accepts.
func TestReadmeConfigurations(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	env, err := parseSubnetEnv([]byte(rigFile))
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for i, block := range strings.Split(string(text), "```") {
		block, ok := strings.CutPrefix(block, "json\n")
		if i%2 == 0 || !ok {
			continue
		}
		var list struct {
			Name    string            `json:"name"`
			Type    string            `json:"type"`
			Plugins []json.RawMessage `json:"plugins"`
		}
		if err := json.Unmarshal([]byte(block), &list); err != nil {
			t.Errorf("%s%v", block, err)
			continue
		}
		if list.Type == "flannel" {
			list.Plugins = append(list.Plugins, json.RawMessage(block))
		}
		for _, p := range list.Plugins {
			n, err := loadNetConf(p)
			if err != nil {
				t.Errorf("%s: %v", p, err)
			}
			if n.Type != "flannel" {
				continue
			}
			n.Name = list.Name
			if _, err := buildDelegate(n, env); err != nil || n.Name == "" {
				t.Errorf("%s: %v", p, err)
			}
			found++
		}
	}
	if found != 3 {
		t.Errorf("README.md has %d configurations of flannel, want 3", found)
	}
}

// TestReadmeErrors: the errors that the README explains are those that there are.
func TestReadmeErrors(t *testing.T) {
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files = append(files, "../../lease/subnetenv/subnetenv.go") // whose errors are shown as they are
	var code strings.Builder
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		code.Write(text)
	}
	_, table, _ := strings.Cut(string(readme), "## When it refuses")
	table, _, _ = strings.Cut(table, "\n## ")
	rows := 0
	for line := range strings.Lines(table) {
		cell, ok := strings.CutPrefix(line, "| `")
		if !ok {
			continue
		}
		rows++
		cell, _, _ = strings.Cut(cell, " |")
		for i, words := range strings.Split("`"+cell, "`") {
			words = strings.ReplaceAll(strings.TrimSuffix(words, ": ..."), `"bridge"`, "%q")
			if i%2 == 1 && !strings.Contains(code.String(), words) {
				t.Errorf("no error says %q", words)
			}
		}
	}
	if rows < 8 {
		t.Errorf("the table has %d rows", rows)
	}
}
