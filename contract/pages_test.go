package contract_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"notifyd/contract"
	"notifyd/contract/encode"
	"notifyd/contract/sign"
	"notifyd/merchant"
)

var pages = filepath.Join("..", "docs", "contracts")

// block is a fenced block of a page: its language, what stands behind that, and its text.
type block struct{ language, name, text string }

var fence = regexp.MustCompile("(?ms)^```(\\w+)(?: (\\S+))?\n(.*?)^```$")

func blocks(t *testing.T, page string) (all []block) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(pages, page))
	if err != nil {
		t.Fatal(err)
	}
	for _, found := range fence.FindAllStringSubmatch(string(content), -1) {
		all = append(all, block{found[1], found[2], found[3]})
	}
	return all
}

// TestPagesShowTheGoldens: what a page calls an example is what the engine sends, byte for byte.
func TestPagesShowTheGoldens(t *testing.T) {
	shown := map[string]int{}
	for _, profile := range contract.Profiles() {
		if profile == contract.Custom {
			continue
		}
		for _, b := range blocks(t, profile+".md") {
			ending := map[string]string{"http": ".request", "text": ".signed"}[b.language]
			if ending == "" {
				continue
			}
			want, err := os.ReadFile(filepath.Join("testdata", "golden", b.name+ending))
			if err != nil || b.text != string(want)+"\n" {
				t.Errorf("%s.md: %s %s is not the golden one (%v)", profile, b.language, b.name, err)
			}
			shown[profile]++
		}
		if shown[profile] < 2 {
			t.Errorf("%s.md: shows no request with its string", profile)
		}
	}
}

// runner is how a language's programs are run: build makes the command of a program in a folder.
type runner struct {
	file  string
	needs []string
	build func(folder string) ([]string, error)
}

func runners() map[string]runner {
	compile := func(folder string, command ...string) error {
		cmd := exec.Command(command[0], command[1:]...)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	interpreted := func(command ...string) func(string) ([]string, error) {
		return func(string) ([]string, error) { return command, nil }
	}
	return map[string]runner{
		"go": {"verify.go", []string{"go"}, func(folder string) ([]string, error) {
			return []string{filepath.Join(folder, "verify")}, compile(folder, "go", "build", "-o", "verify", "verify.go")
		}},
		"java": {"Verify.java", []string{"java", "javac"}, func(folder string) ([]string, error) {
			return []string{"java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", ".", "Verify"}, compile(folder, "javac", "-encoding", "UTF-8", "Verify.java")
		}},
		"js":     {"verify.js", []string{"node"}, interpreted("node", "verify.js")},
		"python": {"verify.py", []string{"python3"}, interpreted("python3", "verify.py")},
		"php":    {"verify.php", []string{"php"}, interpreted("php", "verify.php")},
	}
}

// TestPagesProgramsRun runs every program of every page, where its language is on the machine: it accepts the golden request, and
// refuses it when a byte of the body or of the signature is another.
func TestPagesProgramsRun(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles and runs some thirty programs")
	}
	for _, profile := range contract.Profiles() {
		if profile == contract.Custom {
			continue
		}
		g := goldens()[slices.IndexFunc(goldens(), func(g golden) bool { return g.name == profile })]
		sent := g.made(t, 1)
		tampered, unsigned := sent, sent
		tampered.Body = changed(t, profile, sent.Body)
		signature := signatureOf(t, g.name, sent)
		wrong := swapped(signature)
		unsigned.Body = bytes.Replace(sent.Body, []byte(swapless(signature)), []byte(swapless(wrong)), 1)
		unsigned.Headers = slices.Clone(sent.Headers)
		for i := range unsigned.Headers {
			unsigned.Headers[i].Value = strings.Replace(unsigned.Headers[i].Value, signature, wrong, 1)
		}
		found := map[string]bool{}
		for _, b := range blocks(t, profile+".md") {
			run, is := runners()[b.language]
			if !is {
				continue
			}
			found[b.language] = true
			t.Run(profile+"/"+b.language, func(t *testing.T) {
				t.Parallel()
				for _, program := range run.needs {
					if _, err := exec.LookPath(program); err != nil {
						t.Skipf("%s is not here", program)
					}
				}
				if b.language == "python" && strings.Contains(b.text, "cryptography") && exec.Command("python3", "-c", "import cryptography").Run() != nil {
					t.Skip("python3 has no cryptography")
				}
				if b.language == "php" && strings.Contains(b.text, "simplexml") && exec.Command("php", "-r", `exit((int) !function_exists("simplexml_load_string"));`).Run() != nil {
					t.Skip("php has no simplexml")
				}
				folder := t.TempDir()
				public, err := os.ReadFile(filepath.Join("testdata", "keys", "rsa.pub.pem"))
				if err != nil {
					t.Fatal(err)
				}
				for name, content := range map[string][]byte{run.file: []byte(b.text), "platform.pem": public} {
					if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
						t.Fatal(err)
					}
				}
				command, err := run.build(folder)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range []struct {
					what string
					r    contract.Request
					exit int
				}{
					{"the golden request", sent, 0},
					{"a changed body", tampered, 1},
					{"a changed signature", unsigned, 1},
				} {
					exit, out := cgi(t, folder, command, c.r)
					if exit != c.exit {
						t.Errorf("%s: exit status %d, want %d: %s", c.what, exit, c.exit, out)
					}
					if c.exit == 0 && profile == contract.WeChatPayV3 && out != g.payload {
						t.Errorf("decrypted %q, want %q", out, g.payload)
					}
				}
			})
		}
		for language := range runners() {
			if !found[language] {
				t.Errorf("%s.md: has no program in %s", profile, language)
			}
		}
	}
}

// swapped is a signature of the same length and alphabet that is another one.
func swapped(signature string) string {
	at := len(signature) / 2
	other := "0"
	if signature[at] == '0' {
		other = "1"
	}
	return signature[:at] + other + signature[at+1:]
}

// swapless is a part of a signature that looks the same in a form as elsewhere.
func swapless(signature string) string {
	at := len(signature) / 2
	return signature[at : at+1+strings.IndexFunc(signature[at+1:]+"+", func(r rune) bool { return strings.ContainsRune("+/=", r) })]
}

func changed(t *testing.T, profile string, body []byte) []byte {
	t.Helper()
	from, to := "o-1", "o-2"
	switch profile {
	case contract.Stripe:
		from, to = "1050", "1051"
	case contract.Adyen:
		from, to = "1130", "1131"
	case contract.WeChatPayV3:
		from, to = "encrypt-resource", "encrypt-resourcf"
	}
	other := bytes.Replace(body, []byte(from), []byte(to), 1)
	if bytes.Equal(other, body) {
		t.Fatalf("%s: no %s in %s", profile, from, body)
	}
	return other
}

// cgi runs a program as a server would for one request: headers are in the environment, the body is the standard input.
func cgi(t *testing.T, folder string, command []string, r contract.Request) (exit int, out string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
	cmd.Dir = folder
	cmd.Env = os.Environ()
	for _, h := range r.Headers {
		cmd.Env = append(cmd.Env, "HTTP_"+strings.ToUpper(strings.ReplaceAll(h.Name, "-", "_"))+"="+h.Value)
	}
	cmd.Stdin = bytes.NewReader(r.Body)
	said, err := cmd.CombinedOutput()
	if failed, ok := errors.AsType[*exec.ExitError](err); ok {
		return failed.ExitCode(), string(said)
	}
	if err != nil {
		t.Fatalf("%v: %v", command, err)
	}
	return 0, string(said)
}

// TestPageNamesEverything: the first page has each word that settings may use.
func TestPageNamesEverything(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(pages, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	words := slices.Concat(contract.Profiles(), sign.Algorithms(), sign.Ciphers(), sign.Encodings(), encode.Formats(), encode.Charsets())
	// The names of values are in the error of one that is none.
	_, err = contract.Compile(merchant.Contract{Profile: contract.Custom, Encoding: merchant.Encoding{Format: "json", Fields: map[string]string{"a": "@nothing"}}, Signer: merchant.Signer{Algorithm: "none"}})
	_, names, found := strings.Cut(fmt.Sprint(err), "must be one of ")
	if !found {
		t.Fatal(err)
	}
	words = append(words, strings.Split(names, ", ")...)
	for _, word := range slices.Sorted(maps.Keys(set(words))) {
		if !bytes.Contains(page, []byte("`"+word+"`")) {
			t.Errorf("docs/contracts/README.md does not have `%s`", word)
		}
	}
}

func set(words []string) map[string]bool {
	all := map[string]bool{}
	for _, word := range words {
		all[word] = true
	}
	return all
}

// TestPagesSettings: the settings that pages show are bodies of PutMerchant, and contracts.
func TestPagesSettings(t *testing.T) {
	for _, profile := range contract.Profiles() {
		if profile == contract.Custom {
			continue
		}
		shown := 0
		for _, b := range blocks(t, profile+".md") {
			if b.language != "json" {
				continue
			}
			shown++
			m := parsed(t, profile+".md", []byte(b.text))
			if _, err := contract.Compile(m.Contract); err != nil || m.Contract.Profile != profile {
				t.Errorf("%s.md: %+v: %v", profile, m.Contract, err)
			}
		}
		if shown == 0 {
			t.Errorf("%s.md: shows no settings", profile)
		}
	}
}
