package postgres

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// The npm bundle is a folder with native/bin, native/lib and native/share. npm
// packages cannot carry symbolic links, so native/pg-symlinks.json lists those
// that the libraries need; npm's own install step that makes them is often disabled.
const (
	bundleManifest = "package.json"
	bundleLinks    = "native/pg-symlinks.json"
	bundlePrograms = "native/bin"
)

// findBundles looks in the working folder and around the executable.
func findBundles() []binaries {
	var bases []string
	if working, err := os.Getwd(); err == nil {
		bases = append(bases, working)
	}
	if executable, err := os.Executable(); err == nil {
		folder := filepath.Dir(executable)
		bases = append(bases, folder, filepath.Dir(folder))
	}
	var found []binaries
	for _, base := range bases {
		for _, modules := range []string{".tools/node_modules", "node_modules"} {
			if b, err := inspectBundle(filepath.Join(base, modules, bundleName())); err == nil {
				found = append(found, b)
			}
		}
	}
	return found
}

func inspectBundleOrParent(folder string) (binaries, error) {
	b, err := inspectBundle(folder)
	if errors.Is(err, fs.ErrNotExist) {
		if inside, insideErr := inspectBundle(filepath.Join(folder, bundleName())); insideErr == nil {
			return inside, nil
		}
	}
	return b, err
}

// inspectBundle reads the version from the manifest: the programs themselves may
// not run before the links are made.
func inspectBundle(folder string) (binaries, error) {
	folder, err := filepath.Abs(folder)
	if err != nil {
		return binaries{}, fmt.Errorf("resolve folder: %w", err)
	}
	content, err := os.ReadFile(filepath.Join(folder, bundleManifest)) //nolint:gosec // the operator says where
	if err != nil {
		return binaries{}, fmt.Errorf("read bundle: %w", err)
	}
	var manifest struct{ Version string }
	if err := json.Unmarshal(content, &manifest); err != nil {
		return binaries{}, fmt.Errorf("read bundle: %w", err)
	}
	first, _, _ := strings.Cut(manifest.Version, ".")
	major, err := strconv.Atoi(first)
	if err != nil {
		return binaries{}, fmt.Errorf("read bundle: version %q", manifest.Version)
	}
	b := binaries{folder: filepath.Join(folder, bundlePrograms), major: major, bundle: folder}
	if _, err := os.Stat(b.postgres()); err != nil {
		return binaries{}, fmt.Errorf("read bundle: %w", err)
	}
	return b, nil
}

// readyBundle makes the bundle fit to be run by the account: where it lies, if
// that can be done, else in a copy beside the data.
func readyBundle(ctx context.Context, a account, b binaries, copyFolder string) (binaries, error) {
	inPlace := makeLinks(b.bundle)
	if inPlace == nil {
		if _, inPlace = b.version(ctx, a); inPlace == nil {
			return b, nil
		}
	}
	own := binaries{folder: filepath.Join(copyFolder, bundlePrograms), major: b.major, bundle: copyFolder}
	if sameFile(filepath.Join(b.bundle, bundleManifest), filepath.Join(copyFolder, bundleManifest)) {
		if _, err := own.version(ctx, a); err == nil {
			return own, nil
		}
	}
	if err := copyBundle(b.bundle, copyFolder); err != nil {
		return binaries{}, fmt.Errorf("copy postgres bundle: %w (a copy is needed because: %w)", err, inPlace)
	}
	if _, err := own.version(ctx, a); err != nil {
		return binaries{}, err
	}
	return own, nil
}

func makeLinks(bundle string) error {
	content, err := os.ReadFile(filepath.Join(bundle, bundleLinks))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read bundle links: %w", err)
	}
	var links []struct{ Source, Target string }
	if err := json.Unmarshal(content, &links); err != nil {
		return fmt.Errorf("read bundle links: %w", err)
	}
	for _, link := range links {
		if !filepath.IsLocal(link.Source) || !filepath.IsLocal(link.Target) {
			return fmt.Errorf("read bundle links: %s leads out of the bundle", link.Target)
		}
		target, err := filepath.Rel(filepath.Dir(link.Target), link.Source)
		if err != nil {
			return fmt.Errorf("read bundle links: %w", err)
		}
		if err := os.Symlink(target, filepath.Join(bundle, link.Target)); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make bundle link: %w", err)
		}
	}
	return nil
}

// copyBundle goes through a second name, so that a copy that exists is whole.
func copyBundle(from, to string) error {
	half := to + ".new"
	if err := os.RemoveAll(half); err != nil {
		return err
	}
	if err := copyTree(filepath.Join(from, "native"), filepath.Join(half, "native")); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(from, bundleManifest), filepath.Join(half, bundleManifest), 0o644); err != nil {
		return err
	}
	if err := makeLinks(half); err != nil {
		return err
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	return os.Rename(half, to)
}

// copyTree makes everything readable for all: it holds nothing but public programs.
func copyTree(from, to string) error {
	return filepath.WalkDir(from, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rest, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rest)
		switch {
		case entry.IsDir():
			if err := os.MkdirAll(target, 0o755); err != nil { //nolint:gosec // see above
				return err
			}
			return openUp(filepath.Dir(target), target)
		case entry.Type()&fs.ModeSymlink != 0:
			link, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(link, target) //nolint:gosec // only the engine writes below target
		default:
			info, err := entry.Info()
			if err != nil {
				return err
			}
			return copyFile(path, target, info.Mode().Perm()|0o444|info.Mode().Perm()&0o100>>3|info.Mode().Perm()&0o100>>6)
		}
	})
}

// openUp undoes what a strict umask took.
func openUp(folders ...string) error {
	for _, folder := range folders {
		if err := os.Chmod(folder, 0o755); err != nil { //nolint:gosec // public programs
			return err
		}
	}
	return nil
}

func copyFile(from, to string, mode fs.FileMode) (err error) {
	source, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, source.Close()) }()
	target, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, target.Close()) }()
	if _, err := io.Copy(target, source); err != nil {
		return err
	}
	return target.Chmod(mode) // past the umask
}

func sameFile(x, y string) bool {
	left, leftErr := os.ReadFile(x)
	right, rightErr := os.ReadFile(y)
	return leftErr == nil && rightErr == nil && string(left) == string(right)
}
