package flannelkit_test

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	maxFile     = 450 // lines of a source file
	maxTestFile = 600 // lines of a test file, whose tables are long and flat
	maxFunc     = 80  // lines of a function, from func to its closing brace
)

// longOnPurpose lists what may be longer: "dir/file.go" or "dir/file.go:Func" (a
// method is "Type.Method"), and why. An entry that is no longer needed fails.
func longOnPurpose() map[string]string {
	return map[string]string{}
}

// A sourceFile is one Go file of this repository, nested modules included.
type sourceFile struct {
	name  string // slash-separated, relative to the root
	lines int
	test  bool
	fset  *token.FileSet
	ast   *ast.File
}

func (f *sourceFile) at(p token.Pos) string {
	return fmt.Sprintf("%s:%d", f.name, f.fset.Position(p).Line)
}

// sources parses every Go file, for all systems and build tags.
func sources(t *testing.T) []*sourceFile {
	t.Helper()
	var files []*sourceFile
	err := filepath.WalkDir(".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if base := d.Name(); d.IsDir() && name != "." &&
			(strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_") || base == "testdata" || base == "vendor") {
			return fs.SkipDir
		}
		if d.IsDir() || filepath.Ext(name) != ".go" {
			return nil
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f := &sourceFile{name: filepath.ToSlash(name), lines: bytes.Count(text, []byte("\n")), fset: token.NewFileSet()}
		f.test = strings.HasSuffix(name, "_test.go")
		f.ast, err = parser.ParseFile(f.fset, name, text, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Error(err) // and go on: the other files have to keep the laws meanwhile
			return nil
		}
		if !ast.IsGenerated(f.ast) {
			files = append(files, f)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// receiver returns the type name a method belongs to, "" for a function.
func receiver(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return ""
	}
	for typ := fn.Recv.List[0].Type; ; {
		switch t := typ.(type) {
		case *ast.StarExpr:
			typ = t.X
		case *ast.ParenExpr:
			typ = t.X
		case *ast.IndexExpr:
			typ = t.X
		case *ast.IndexListExpr:
			typ = t.X
		case *ast.Ident:
			return t.Name
		default:
			return ""
		}
	}
}

func TestEveryPackageHasOneComment(t *testing.T) {
	comments := make(map[string][]string) // by directory: where its package comments are
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		dir := path.Dir(f.name)
		if _, seen := comments[dir]; !seen {
			comments[dir] = nil
		}
		text := f.ast.Doc.Text()
		if text == "" {
			continue
		}
		comments[dir] = append(comments[dir], f.name)
		if name := f.ast.Name.Name; name != "main" && !strings.HasPrefix(text, "Package "+name+" ") {
			t.Errorf("%s: the package comment must begin with %q, as godoc expects", f.at(f.ast.Package), "Package "+name)
		}
	}
	for dir, found := range comments {
		if len(found) != 1 {
			t.Errorf("%s has %d package comments %v, want one: it is the first thing a reader looks for, and godoc joins several in file order", dir, len(found), found)
		}
	}
}

func TestFilesAndFunctionsAreShort(t *testing.T) {
	long := longOnPurpose()
	used := make(map[string]bool)
	check := func(where, key string, lines, limit int) {
		if lines <= limit {
			return
		}
		used[key] = true
		if long[key] == "" {
			t.Errorf("%s has %d lines, more than %d: look for the second idea in it (or list %q in longOnPurpose with the reason)", where, lines, limit, key)
		}
	}
	for _, f := range sources(t) {
		limit := maxFile
		if f.test {
			limit = maxTestFile
		}
		check(f.name, f.name, f.lines, limit)
		for _, decl := range f.ast.Decls {
			fn, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			name := fn.Name.Name
			if recv := receiver(fn); recv != "" {
				name = recv + "." + name
			}
			lines := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
			check(f.at(fn.Pos())+": "+name, f.name+":"+name, lines, maxFunc)
		}
	}
	for key := range long {
		if !used[key] {
			t.Errorf("longOnPurpose lists %s, which is not long any more: delete the entry", key)
		}
	}
}

func TestExportedNamesAreDocumented(t *testing.T) {
	for _, f := range sources(t) {
		internal := slices.Contains(strings.Split(path.Dir(f.name), "/"), "internal")
		if f.test || internal || f.ast.Name.Name == "main" || strings.HasPrefix(f.name, "bench/") {
			continue // nobody can import these, and bench is a program
		}
		for _, name := range undocumented(f) {
			t.Errorf("%s has no doc comment: say what a user can act on (units, limits, errors, who owns a buffer, the RFC or kernel source)", name)
		}
	}
}

// undocumented returns the exported names of a file without a comment, methods,
// struct fields and interface methods included, each with its place.
func undocumented(f *sourceFile) []string {
	var missing []string
	need := func(id *ast.Ident, owner string, comments ...*ast.CommentGroup) {
		if !id.IsExported() {
			return
		}
		for _, c := range comments {
			if c.Text() != "" { // Text leaves out directives such as //go:noinline
				return
			}
		}
		missing = append(missing, f.at(id.Pos())+": "+owner+id.Name)
	}
	for _, decl := range f.ast.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if recv := receiver(d); recv == "" {
				need(d.Name, "", d.Doc)
			} else if ast.IsExported(recv) {
				need(d.Name, recv+".", d.Doc)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch s := spec.(type) {
				case *ast.ValueSpec:
					for _, id := range s.Names {
						need(id, "", d.Doc, s.Doc, s.Comment) // one comment may speak for a const block
					}
				case *ast.TypeSpec:
					// The comment of a parenthesised block describes the block, not each type.
					if d.Lparen == token.NoPos {
						need(s.Name, "", d.Doc, s.Doc)
					} else {
						need(s.Name, "", s.Doc)
					}
					if s.Name.IsExported() {
						members(s.Type, s.Name.Name+".", need)
					}
				}
			}
		}
	}
	return missing
}

// members asks for the comments of a type's fields and interface methods. An
// embedded one is documented where it is declared.
func members(typ ast.Expr, owner string, need func(*ast.Ident, string, ...*ast.CommentGroup)) {
	var list *ast.FieldList
	switch typ := typ.(type) {
	case *ast.StructType:
		list = typ.Fields
	case *ast.InterfaceType:
		list = typ.Methods
	default:
		return
	}
	for _, field := range list.List {
		for _, id := range field.Names {
			need(id, owner, field.Doc, field.Comment)
			if id.IsExported() {
				members(field.Type, owner+id.Name+".", need)
			}
		}
	}
}

func TestUndocumentedSeesEveryKindOfName(t *testing.T) {
	const text = `package p
// Documented.
type A struct {
	Bare int
	Line int // has one
	In struct { Deep int }
	private int
}
//go:noinline
func F() {}
func (a *A) M() {}
func (b *b[K, V]) Unreachable() {}
type I interface { Call(); error }
// A block.
const ( C = 1; D = 2 )
// A block says nothing about its types.
type ( T int )
var V, w = 1, 2
`
	f := &sourceFile{name: "p.go", fset: token.NewFileSet()}
	var err error
	if f.ast, err = parser.ParseFile(f.fset, f.name, text, parser.ParseComments); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, n := range undocumented(f) {
		_, name, _ := strings.Cut(n, ": ")
		names = append(names, name)
	}
	want := "A.Bare A.In A.In.Deep F A.M I I.Call T V"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("undocumented names: %s\nwant: %s", got, want)
	}
}
