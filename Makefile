# The daily commands; CI runs these and nothing else. A target is here only when it does something.

SHELL := /usr/bin/env bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
# Where scripts/setup.sh puts Rust when there was none.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin
# In CI the lock file is what is tested, so it must not change on the way.
LOCKED := $(if $(CI),--locked)
DENY := target/tools/bin/cargo-deny --workspace $(LOCKED)

.PHONY: help
help: ## List these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: setup
setup: ## Install what this machine lacks; says what before it does
	@scripts/setup.sh

.PHONY: build
build: ## Build target/debug/pgstead
	@scripts/setup.sh build
	cargo build $(LOCKED) -p pgstead

.PHONY: demo
demo: ## Three nodes on this machine, and the loss of the leader's: shown live
	@scripts/setup.sh build postgres
	@cargo build $(LOCKED) -p pgstead -p pgstead-cluster-tests --bin pgstead --bin demo
	@target/debug/demo

.PHONY: test
test: ## Run every test; the last line is the runner's own
	@scripts/setup.sh build postgres test vm
	@scripts/test.sh $(LOCKED)

SEEDS ?= 200
START ?= 1
.PHONY: sim
sim: ## Simulate SEEDS courses of faults from seed START on (VERBOSE=1 tells each); the last line is the verdict
	@scripts/setup.sh build
	@cargo run --quiet --release $(LOCKED) -p pgstead-sim --bin sim -- --seeds $(SEEDS) --start $(START) $(if $(VERBOSE),--verbose)

.PHONY: drill
drill: ## Run the tests with real faults in their long form, as root: some half an hour
	@scripts/setup.sh build postgres test
	@scripts/drill.sh $(LOCKED)

MUTANTS ?=
MUTANT_SEEDS ?= 10000
.PHONY: sim-mutants
sim-mutants: ## Remove one protocol rule after another from a copy and see the simulation notice (hours; MUTANTS=name for some)
	@scripts/setup.sh build
	@cargo run --quiet $(LOCKED) -p pgstead-sim --bin mutants -- --root . --seeds $(MUTANT_SEEDS) $(MUTANTS)

.PHONY: model
model: ## Search every state of small clusters, larger ones than `make test` does (minutes to an hour)
	@scripts/setup.sh build
	@cargo run --quiet --release $(LOCKED) -p pgstead-model --bin model

BODIES ?=
.PHONY: vm
vm: ## Run the volume suite and nodes on real LVM in a virtual machine (BODIES=name for some, BODIES=all for more)
	@scripts/setup.sh build vm
	@cargo build --quiet $(LOCKED) -p pgstead -p pgstead-vm --bins
	@target/debug/vm $(BODIES)

.PHONY: verify
verify: ## Check format, lints, dependencies and the repository itself; never writes
	@scripts/setup.sh build verify
	cargo fmt --all --check
	cargo clippy $(LOCKED) --workspace --all-targets -- -D warnings
	$(DENY) --log-level error check --hide-inclusion-graph bans licenses sources
	cargo test $(LOCKED) --quiet -p pgstead-tidy --no-fail-fast

.PHONY: advisories
advisories: ## Check dependencies against the RustSec database (fetched from GitHub)
	@scripts/setup.sh build verify
	$(DENY) check advisories

.PHONY: fix
fix: ## Format, and apply what clippy can mend by itself
	@scripts/setup.sh build verify
	cargo fmt --all
	cargo clippy --workspace --all-targets --fix --allow-dirty --allow-staged
	cargo fmt --all

.PHONY: bless
bless: ## Rewrite the golden files from what the code does now; commit only a diff that you understand
	@scripts/setup.sh build postgres test vm
	INSTA_UPDATE=always INSTA_FORCE_PASS=1 PGSTEAD_BLESS=1 scripts/test.sh
	git status --short

# Rounds of `bench-failover`: 20 take some fifteen minutes, 1 takes two. FAULTS=switchover,node_killed measures only those.
ROUNDS ?= 20
FAULTS ?=

.PHONY: bench-failover
bench-failover: ## Measure failovers beside a plain Postgres pair, and the cost of management at rest
	@scripts/setup.sh build postgres
	cargo build --release $(LOCKED) -p pgstead -p pgstead-cluster-tests --bin pgstead --bin bench-failover
	ROUNDS=$(ROUNDS) FAULTS=$(FAULTS) target/release/bench-failover

MINUTES ?= 30

.PHONY: bench-calm
bench-calm: ## Count changes of leader that nobody needed, under more load than the machine has cores
	@scripts/setup.sh build postgres
	cargo build --release $(LOCKED) -p pgstead -p pgstead-cluster-tests --bin pgstead --bin bench-calm
	MINUTES=$(MINUTES) target/release/bench-calm

# Of the larger database that is snapshotted, forked and copied, in the machine. PARTS names parts of it: plain, stall, copies, replica, room.
MEGABYTES ?= 2048

.PHONY: bench-volumes
bench-volumes: ## Measure snapshots, forks and thin volumes beside plain disks and pg_basebackup, in the virtual machine
	@scripts/setup.sh build vm
	cargo build --release $(LOCKED) -p pgstead -p pgstead-vm --bin pgstead --bin bench-volumes
	ROUNDS=$(if $(filter file,$(origin ROUNDS)),5,$(ROUNDS)) MEGABYTES=$(MEGABYTES) target/release/bench-volumes

# Measurements: `bench`.
