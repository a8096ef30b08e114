// Command measure prints how far the code is from the norms of style. They are argued over in review and never fail a
// build, so it ends well whatever it finds.
package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The norms.
const (
	fileMedian, fileHigh, fileLongest = 150, 400, 600
	funcMedian, funcHigh, funcLongest = 12, 60, 100
	mostParameters                    = 4 // after the context
	mostMethods                       = 3
	mostFields                        = 12
)

func main() {
	m := measure{set: token.NewFileSet()}
	if err := filepath.WalkDir(".", m.visit); err != nil {
		fmt.Fprintln(os.Stderr, "measure:", err)
		os.Exit(1)
	}
	m.print()
}

// sized is anything that a norm bounds.
type sized struct {
	what string
	size int
}

type measure struct {
	set                                    *token.FileSet
	files, funcs                           []sized
	parameters, interfaces, structs, roots []sized
	sleeps                                 []sized // in tests
}

func (m *measure) visit(path string, entry fs.DirEntry, err error) error {
	if err != nil {
		return err
	}
	if name := entry.Name(); entry.IsDir() {
		if path != "." && (strings.HasPrefix(name, ".") || name == "node_modules" || name == "testdata" || name == "bin") {
			return fs.SkipDir
		}
		return nil
	}
	if filepath.Ext(path) != ".go" {
		return nil
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	file, err := parser.ParseFile(m.set, path, content, parser.ParseComments)
	if err != nil {
		return err
	}
	if ast.IsGenerated(file) {
		return nil
	}
	test := strings.HasSuffix(path, "_test.go")
	if !test {
		m.files = append(m.files, sized{path, bytes.Count(content, []byte("\n"))})
	}
	ast.Inspect(file, func(n ast.Node) bool { m.node(n, path, test); return true })
	return nil
}

func (m *measure) node(n ast.Node, path string, test bool) {
	if call, ok := n.(*ast.CallExpr); ok {
		m.call(call, path, test)
	}
	if test {
		return
	}
	switch n := n.(type) {
	case *ast.FuncDecl:
		from, to := m.set.Position(n.Pos()).Line, m.set.Position(n.End()).Line
		m.funcs = append(m.funcs, sized{m.at(n, n.Name.Name), to - from + 1})
		m.parameters = over(m.parameters, m.at(n, n.Name.Name), parameters(n.Type), mostParameters)
	case *ast.TypeSpec:
		switch t := n.Type.(type) {
		case *ast.InterfaceType:
			m.interfaces = over(m.interfaces, m.at(n, n.Name.Name), t.Methods.NumFields(), mostMethods)
		case *ast.StructType:
			if !strings.Contains(n.Name.Name, "Config") {
				m.structs = over(m.structs, m.at(n, n.Name.Name), t.Fields.NumFields(), mostFields)
			}
		}
	}
}

func (m *measure) call(call *ast.CallExpr, path string, test bool) {
	selector, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return
	}
	from, ok := selector.X.(*ast.Ident)
	if !ok {
		return
	}
	switch name := from.Name + "." + selector.Sel.Name; {
	case test && name == "time.Sleep":
		m.sleeps = append(m.sleeps, sized{m.at(call, name), 1})
	case !test && !strings.HasPrefix(path, "cmd") && (name == "context.Background" || name == "context.TODO"):
		m.roots = append(m.roots, sized{m.at(call, name), 1})
	}
}

func (m *measure) at(n ast.Node, name string) string {
	p := m.set.Position(n.Pos())
	return fmt.Sprintf("%s:%d %s", p.Filename, p.Line, name)
}

func parameters(t *ast.FuncType) int {
	count := t.Params.NumFields()
	if count > 0 {
		if s, ok := t.Params.List[0].Type.(*ast.SelectorExpr); ok && s.Sel.Name == "Context" {
			count--
		}
	}
	return count
}

func over(list []sized, what string, size, most int) []sized {
	if size > most {
		list = append(list, sized{what, size})
	}
	return list
}

func (m *measure) print() {
	spread("files, lines", m.files, fileMedian, fileHigh, fileLongest)
	spread("functions, lines", m.funcs, funcMedian, funcHigh, funcLongest)
	list(fmt.Sprintf("more than %d parameters after the context", mostParameters), m.parameters)
	list(fmt.Sprintf("interfaces of more than %d methods", mostMethods), m.interfaces)
	list(fmt.Sprintf("structs of more than %d fields, configuration apart", mostFields), m.structs)
	list("sleeps in tests", m.sleeps)
	list("context roots outside of cmd and tests", m.roots)
}

func spread(what string, all []sized, median, high, longest int) {
	if len(all) == 0 {
		return
	}
	bySize(all)
	fmt.Printf("%-18s %5d  median %d (norm %d), 95th percentile %d (%d), longest %d (%d)\n", what, len(all),
		all[len(all)/2].size, median, all[len(all)*5/100].size, high, all[0].size, longest)
	for _, one := range all {
		if one.size > longest {
			fmt.Printf("  %5d %s\n", one.size, one.what)
		}
	}
}

func list(what string, all []sized) {
	fmt.Printf("%s: %d\n", what, len(all))
	bySize(all)
	for _, one := range all {
		fmt.Printf("  %5d %s\n", one.size, one.what)
	}
}

func bySize(all []sized) {
	slices.SortStableFunc(all, func(a, b sized) int { return b.size - a.size })
}
