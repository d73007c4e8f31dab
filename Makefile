# hybridnic. `make demo` and `make test` are all that a newcomer needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
SETUP := e2e/setup/install.sh
CARGO := cargo
# Lab tests share one pair of emulated nodes' addresses and two cores: one after the other.
LAB_TESTS := lab_smoke lab_flight lab_pool lab_faults lab_lifecycle

.PHONY: help demo test setup build crds check unit kernel cluster lab bench deny clean

help: ## Show this
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: ## Install what is missing (apt, cargo, go)
	@$(SETUP)

build: ## Build all programs
	$(CARGO) build --workspace --locked

demo: setup build ## A VM moves between two nodes under traffic; watch it
	@$(CARGO) run -q -p hybridnic-e2e --bin demo

test: ## All tests, tier by tier, with the time of each
	@e2e/test.sh

crds: ## Write crds/ from the types
	$(CARGO) run -q -p hybridnic-api --bin crdgen crds

check: ## Format, lints, docs, generated files
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --all-features --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	$(CARGO) run -q -p hybridnic-api --bin crdgen -- --check crds

deny: ## Advisories, licences, duplicates
	$(CARGO) deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check

unit: ## Unit and property tests; no root
	$(CARGO) test --workspace --locked --lib --bins
	$(CARGO) test --locked -p hybridnic-qmp --test session

kernel: ## Real kernel and real QEMU, in network namespaces of their own
	$(CARGO) test --locked -p hybridnic-net --features kernel-tests --test kernel
	$(CARGO) test --locked -p hybridnic-qmp --features kernel-tests --test real_qemu

cluster: build ## Real kube-apiserver, etcd and controller manager
	$(CARGO) test --locked -p hybridnic-e2e --features cluster-tests --test controlplane --test api --test operator

lab: build ## Two emulated nodes with SR-IOV, the real programs, guests that migrate
	$(CARGO) test --locked --no-fail-fast -p hybridnic-e2e --features lab-tests $(LAB_TESTS:%=--test %) -- --test-threads=1 --nocapture

bench: ## Figures; see docs/benchmarks.md
	@e2e/bench.sh

clean: ## Remove what was built; caches stay
	$(CARGO) clean
