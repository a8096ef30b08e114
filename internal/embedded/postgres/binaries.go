package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// ErrNotInstalled says that no usable Postgres was found on this machine.
var ErrNotInstalled = errors.New("postgres is not installed")

// ErrVersion says that no Postgres found can read the existing data folder.
var ErrVersion = errors.New("postgres version does not match the data folder")

const debianFolders = "/usr/lib/postgresql/*/bin"

// binaries are one installed Postgres.
type binaries struct {
	folder string // holds postgres and initdb
	major  int
	bundle string // the npm package's folder, when it is one; see bundle.go
}

func (b binaries) postgres() string { return filepath.Join(b.folder, "postgres") }
func (b binaries) initdb() string   { return filepath.Join(b.folder, "initdb") }

func (b binaries) String() string {
	return fmt.Sprintf("%d in %s", b.major, b.folder)
}

// findBinaries returns what the account can run (bundles excepted, which can be
// made so), in order of preference: what was asked for, PATH, Debian's folders,
// bundles lying around. An explicit folder of programs stands alone.
func findBinaries(ctx context.Context, a account, cfg Config, debian string) ([]binaries, error) {
	if explicit := cmp.Or(cfg.Bin, os.Getenv(EnvBin)); explicit != "" {
		b, err := inspectFolder(ctx, a, explicit)
		if err != nil {
			return nil, fmt.Errorf("use %s=%s: %w", EnvBin, explicit, err)
		}
		return []binaries{b}, nil
	}
	var found []binaries
	if explicit := cmp.Or(cfg.Bundle, os.Getenv(EnvBundle)); explicit != "" {
		b, err := inspectBundleOrParent(explicit)
		if err != nil {
			return nil, fmt.Errorf("use %s=%s: %w", EnvBundle, explicit, err)
		}
		found = append(found, b)
	}
	var rejected []string
	for _, folder := range installedFolders(debian) {
		if b, err := inspectFolder(ctx, a, folder); err == nil {
			found = append(found, b)
		} else {
			rejected = append(rejected, err.Error())
		}
	}
	if found = append(found, findBundles()...); len(found) > 0 {
		return found, nil
	}
	reason := ""
	if len(rejected) > 0 {
		reason = " (" + strings.Join(rejected, "; ") + ")"
	}
	return nil, fmt.Errorf("find postgres: %w%s: install the Debian package postgresql, or run: npm install --prefix .tools %s, or set %s",
		ErrNotInstalled, reason, bundleName(), EnvBin)
}

// installedFolders are those on PATH, then Debian's from the newest to the oldest.
func installedFolders(debianPattern string) []string {
	var folders []string
	if path, err := exec.LookPath("postgres"); err == nil {
		if resolved, err := filepath.EvalSymlinks(path); err == nil {
			folders = append(folders, filepath.Dir(resolved))
		}
	}
	debian, _ := filepath.Glob(debianPattern) // fails only on a malformed pattern
	slices.SortFunc(debian, func(x, y string) int { return cmp.Compare(debianVersion(y), debianVersion(x)) })
	for _, folder := range debian {
		if !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	return folders
}

func debianVersion(folder string) float64 {
	version, _ := strconv.ParseFloat(filepath.Base(filepath.Dir(folder)), 64) // 9.6 was the last with a dot
	return version
}

func inspectFolder(ctx context.Context, a account, folder string) (binaries, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return binaries{}, fmt.Errorf("resolve folder: %w", err)
	}
	b := binaries{folder: folder}
	if _, err := os.Stat(b.initdb()); err != nil {
		return binaries{}, fmt.Errorf("find initdb beside postgres: %w", err)
	}
	b.major, err = b.version(ctx, a)
	return b, err
}

// version runs the server's binary as the account, which proves that it can be run.
func (b binaries) version(ctx context.Context, a account) (int, error) {
	output, err := a.run(ctx, "/", b.postgres(), "-V")
	if err != nil {
		return 0, fmt.Errorf("run %s as user %s: %w%s", b.postgres(), a.name, err, quoted(output))
	}
	match := regexp.MustCompile(`\(PostgreSQL\) (\d+)`).FindStringSubmatch(output)
	if match == nil {
		return 0, fmt.Errorf("read version of %s: it says%s", b.postgres(), quoted(output))
	}
	return strconv.Atoi(match[1])
}

// choose takes the first that fits the existing data, where there is some (major > 0).
func choose(found []binaries, data string, major int) (binaries, error) {
	if major == 0 {
		return found[0], nil
	}
	for _, b := range found {
		if b.major == major {
			return b, nil
		}
	}
	names := make([]string, len(found))
	for i, b := range found {
		names[i] = b.String()
	}
	return binaries{}, fmt.Errorf("open %s: %w: the folder was made by version %d, found is version %s: install postgresql-%d, or move the folder away to begin a new one",
		data, ErrVersion, major, strings.Join(names, ", "), major)
}

func bundleName() string {
	architecture := runtime.GOARCH
	if architecture == "amd64" {
		architecture = "x64" // npm's word for it
	}
	return "@embedded-postgres/linux-" + architecture
}

// quoted is for the end of an error: what a child said, in one bounded line.
func quoted(output string) string {
	const most = 800
	output = strings.Join(strings.Fields(output), " ")
	if output == "" {
		return ""
	}
	if len(output) > most {
		output = "..." + output[len(output)-most:]
	}
	return fmt.Sprintf(" %q", output)
}
