package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// longestSocketPath is the kernel's bound for the address of a Unix socket.
	longestSocketPath = 107
	socketFile        = ".s.PGSQL." + port
	// Kept twice at most: the file that is written, and the one before.
	largestLog = 8 << 20
	halfMade   = "data.init-"
)

// folder is Config.Dir, absolute and without links. The engine owns it; what
// Postgres must write lies in folders below that are handed to its account.
type folder string

func (f folder) data() string    { return filepath.Join(string(f), "data") }
func (f folder) logFile() string { return filepath.Join(string(f), "postgres.log") }
func (f folder) bundle() string  { return filepath.Join(string(f), "pg-bundle") }

// openFolder makes the folder and lets the account pass, but not look.
func openFolder(dir string) (folder, error) {
	mode := fs.FileMode(0o700)
	if os.Geteuid() == 0 {
		mode = 0o711 // also for the parents that are made on the way
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return "", fmt.Errorf("make postgres folder: %w", err)
	}
	absolute, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("resolve postgres folder: %w", err)
	}
	absolute, err = filepath.EvalSymlinks(absolute)
	if err != nil {
		return "", fmt.Errorf("resolve postgres folder: %w", err)
	}
	if os.Geteuid() != 0 {
		return folder(absolute), nil
	}
	info, err := os.Stat(absolute)
	if err != nil {
		return "", fmt.Errorf("read postgres folder: %w", err)
	}
	if err := os.Chmod(absolute, info.Mode().Perm()|0o011); err != nil {
		return "", fmt.Errorf("open postgres folder for its user: %w", err)
	}
	return folder(absolute), nil
}

// dataVersion is the major version that made the data, or 0 where there is none yet.
func (f folder) dataVersion() (int, error) {
	path := filepath.Join(f.data(), "PG_VERSION")
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(f.data()); errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		}
		// Never made by us: a folder gets this name only when it is complete.
		return 0, fmt.Errorf("open %s: there is no PG_VERSION in it: move the folder away to begin a new one", f.data())
	}
	if err != nil {
		return 0, fmt.Errorf("read data version: %w", err)
	}
	major, _, _ := strings.Cut(strings.TrimSpace(string(content)), ".")
	version, err := strconv.Atoi(major)
	if err != nil {
		return 0, fmt.Errorf("read data version: %w", err)
	}
	return version, nil
}

// initialise makes the data under a temporary name and renames it when it is
// complete and on disk, so that a crash at any point leaves none or all of it.
func (f folder) initialise(ctx context.Context, a account, b binaries) (err error) {
	half, err := os.MkdirTemp(string(f), halfMade)
	if err != nil {
		return fmt.Errorf("make data folder: %w", err)
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(half) // what is left now is removed by the next start
		}
	}()
	if err := a.own(half); err != nil {
		return fmt.Errorf("hand over data folder: %w", err)
	}
	output, err := a.run(ctx, half, b.initdb(), "-D", half, "-U", adminName, "--encoding=UTF8", "--locale=C",
		"--data-checksums", "--auth-local=trust", "--auth-host=reject")
	if err != nil {
		return fmt.Errorf("run initdb: %w%s", err, quoted(output))
	}
	if err := os.Rename(half, f.data()); err != nil {
		return fmt.Errorf("put data folder in place: %w", err)
	}
	return syncFolder(string(f))
}

// removeHalfMade clears what a crash during initialise left. It is in nobody's
// way, so failing to is only worth a warning.
func (f folder) removeHalfMade(log *zap.Logger) {
	found, _ := filepath.Glob(filepath.Join(string(f), halfMade+"*")) // fails only on a malformed pattern
	for _, path := range found {
		log.Info("removing a data folder whose making was interrupted", zap.String("folder", path))
		if err := os.RemoveAll(path); err != nil {
			log.Warn("half-made data folder stays", zap.Error(err))
		}
	}
}

// socketFolder makes the folder of the socket: in the data folder's place if the
// path is short enough, else under the temporary folder. temporary tells which.
func (f folder) socketFolder(a account) (path string, temporary bool, err error) {
	path = filepath.Join(string(f), "run")
	if !fitsSocket(path) {
		sum := sha256.Sum256([]byte(f))
		name := "notifyd-" + hex.EncodeToString(sum[:8])
		if path, temporary = filepath.Join(os.TempDir(), name), true; !fitsSocket(path) {
			path = filepath.Join("/tmp", name)
		}
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", false, fmt.Errorf("make socket folder: %w", err)
	}
	// No password is asked for behind this door, and under the temporary folder
	// somebody else may have built one of the same name.
	info, err := os.Lstat(path)
	if err != nil {
		return "", false, fmt.Errorf("read socket folder: %w", err)
	}
	mine := account{uid: os.Geteuid()}
	if !info.IsDir() || info.Mode().Perm()&0o077 != 0 || !a.owns(info) && !mine.owns(info) {
		return "", false, fmt.Errorf("use socket folder %s: it is not a private folder of user %s: remove it", path, a.name)
	}
	if a.foreign {
		if err := os.Lchown(path, a.uid, a.gid); err != nil {
			return "", false, fmt.Errorf("hand over socket folder: %w", err)
		}
	}
	return path, temporary, nil
}

// fitsSocket also turns away what would end a name in the lists that Postgres
// and pgx take.
func fitsSocket(path string) bool {
	return len(filepath.Join(path, socketFile)) <= longestSocketPath && !strings.ContainsAny(path, `,"`)
}

// openLog opens the file that the postmaster writes to, as the engine.
func (f folder) openLog() (*os.File, error) {
	if info, err := os.Lstat(f.logFile()); err == nil && info.Size() > largestLog {
		if err := os.Rename(f.logFile(), f.logFile()+".1"); err != nil {
			return nil, fmt.Errorf("rotate postgres log: %w", err)
		}
	}
	file, err := os.OpenFile(f.logFile(), os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open postgres log: %w", err)
	}
	return file, nil
}

// logSince returns what the postmaster wrote from an offset on.
func logSince(file *os.File, offset int64) string {
	const most = 64 << 10
	content, _ := io.ReadAll(io.NewSectionReader(file, offset, most))
	return string(content)
}

func logSize(file *os.File) int64 {
	if info, err := file.Stat(); err == nil {
		return info.Size()
	}
	return 0
}

func syncFolder(path string) error {
	open, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("sync folder: %w", err)
	}
	return errors.Join(open.Sync(), open.Close())
}
