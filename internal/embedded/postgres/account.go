package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"
)

// account is who Postgres runs as: it refuses to be root.
type account struct {
	name string
	uid  int
	gid  int
	// foreign is true when the engine is root and the account is not: then folders
	// must be handed over and children must switch.
	foreign bool
}

// pickAccount keeps to the owner of existing data, so that an engine started as
// root now and then does not lock out the one that is normally started without.
func pickAccount(data, wanted string) (account, error) {
	if uid := os.Geteuid(); uid != 0 {
		return account{name: strconv.Itoa(uid), uid: uid, gid: os.Getegid()}, nil
	}
	if wanted != "" {
		return lookupAccount(wanted)
	}
	if info, err := os.Stat(data); err == nil {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok && owner.Uid != 0 {
			return account{name: nameOf(owner.Uid), uid: int(owner.Uid), gid: int(owner.Gid), foreign: true}, nil
		}
	}
	for _, name := range []string{"postgres", "nobody"} {
		if found, err := lookupAccount(name); err == nil {
			return found, nil
		}
	}
	return account{}, errors.New("pick user for postgres: it cannot run as root, and there is neither a user postgres nor nobody: run notifyd as a normal user or create one")
}

func lookupAccount(name string) (account, error) {
	found, err := user.Lookup(name)
	if err != nil {
		return account{}, fmt.Errorf("pick user for postgres: %w", err)
	}
	uid, uidErr := strconv.Atoi(found.Uid)
	gid, gidErr := strconv.Atoi(found.Gid)
	if err := errors.Join(uidErr, gidErr); err != nil {
		return account{}, fmt.Errorf("pick user for postgres: %w", err)
	}
	if uid == 0 {
		return account{}, fmt.Errorf("pick user for postgres: %s is root, and postgres refuses to run as root", name)
	}
	return account{name: name, uid: uid, gid: gid, foreign: true}, nil
}

func nameOf(uid uint32) string {
	id := strconv.FormatUint(uint64(uid), 10)
	if found, err := user.LookupId(id); err == nil {
		return found.Username
	}
	return id
}

// command prepares a child that runs as the account, dies with the engine and
// does not hear a Ctrl-C meant for the engine, which drains before it stops Postgres.
// The caller stays on its thread until the child has ended; see launch.
func (a account) command(ctx context.Context, deathSignal syscall.Signal, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second // a grandchild may hold the output open
	cmd.Env = childEnvironment()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: deathSignal}
	if a.foreign {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)} //nolint:gosec // ids come from the kernel or passwd
	}
	return cmd
}

// childEnvironment leaves out what would change Postgres' mind (PGPORT, LANG) and
// what is none of its business (the engine's secrets).
func childEnvironment() []string {
	environment := []string{"LC_ALL=C"}
	for _, key := range []string{"PATH", "LD_LIBRARY_PATH"} {
		if value, set := os.LookupEnv(key); set {
			environment = append(environment, key+"="+value)
		}
	}
	return environment
}

// run runs a short child to its end and returns what it printed.
func (a account) run(ctx context.Context, folder, path string, args ...string) (string, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := a.command(ctx, syscall.SIGKILL, path, args...)
	cmd.Dir = folder
	output, err := cmd.CombinedOutput()
	return string(output), err
}

// checkWayTo finds out whether the account can enter the folder. The kernel is
// asked, by a child that changes there, because modes do not tell about ACLs.
func (a account) checkWayTo(ctx context.Context, folder string) error {
	if !a.foreign || a.enter(ctx, folder) == nil {
		return nil
	}
	// The topmost folder that turns the account away is the one to name.
	closed := folder
	for parent := folder; ; parent = filepath.Dir(parent) {
		if a.enter(ctx, parent) != nil {
			closed = parent
		}
		if parent == filepath.Dir(parent) {
			break
		}
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("check way to data folder: %w", err)
	}
	return fmt.Errorf("enter data folder %s: user %q, whom postgres runs as because notifyd is root, may not pass %s: "+
		"keep the data folder elsewhere (for instance /var/lib/notifyd), run notifyd as a normal user, or allow it with: chmod o+x %s",
		folder, a.name, closed, closed)
}

// enter relies on the shell that initdb needs too.
func (a account) enter(ctx context.Context, folder string) error {
	_, err := a.run(ctx, folder, "/bin/sh", "-c", ":")
	return err
}

// own hands a folder and all in it to the account. The former owner may still be
// about: names are looked up inside the folder, so that none leads root out of it.
func (a account) own(folder string) (err error) {
	if !a.foreign {
		return nil
	}
	root, err := os.OpenRoot(folder)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, root.Close()) }()
	return fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(path, a.uid, a.gid)
	})
}

// owns tells whether the folder itself belongs to the account.
func (a account) owns(info fs.FileInfo) bool {
	owner, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(owner.Uid) == a.uid
}
