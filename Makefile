# hybridnic. `make demo` and `make test` are all that a newcomer needs.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
SETUP := e2e/setup/install.sh
CARGO := cargo
# Always the whole workspace with all features, or cargo builds the dependencies again for each selection of them.
ALL := --workspace --all-features --locked
# Control planes that run at once: they wait more than they compute.
CLUSTERS := 6
# Tests of what the operator decides, which no version of Kubernetes changes.
DECISIONS := decide loss pods pools
BUILT := $(or $(CARGO_TARGET_DIR),target)/debug

.PHONY: help demo demos freezes test setup build crds chart images sbom docs fast check lint unit model model-deep kernel cluster cluster-oldest kubevirt kubevirt-nodes kubevirt-faults monitoring lab nodes \
	bench bench-scale deny msrv each fuzz scripts clean

help: ## Show this
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

setup: ## Install what is missing (apt, cargo, go)
	@$(SETUP)

build: ## Build all programs and tests
	$(CARGO) build $(ALL) --all-targets

demo: setup ## A VM moves between two nodes under traffic; watch it
	@kernel=$$(e2e/ready.sh) && LAB_KERNEL=$$kernel $(BUILT)/demo

demos: setup build ## Forty demos in a row beside four compilers, and how many the emulation has spoilt; see docs/testing.md
	@LAB_DEMOS=$${LAB_DEMOS:-40} LAB_COMPILERS=$${LAB_COMPILERS:-4} $(BUILT)/demo

freezes: setup build ## VFs plugged over and over, and how many guests the emulation has frozen; see docs/testing.md
	@$(BUILT)/examples/freezes

# CI runs each time what is left out, but kubevirt-faults, by AND="fast cluster-oldest kubevirt nodes kubevirt-nodes".
test: ## The tiers of every day, with the time of each; others by name: make test AND="fast nodes"
	@e2e/test.sh $(AND)

crds: build ## Write the CRDs from the types, here and in the chart, and their reference
	$(BUILT)/crdgen crds deploy/chart/files/crds
	$(BUILT)/crdref docs/crd-reference.md

chart: build ## Write the table of the chart's values
	$(BUILT)/values-table deploy/chart

images: sbom ## Container images of a release build and the kubectl plugin, in target/images, and what is compiled into them
	$(CARGO) build --release --locked -p hybridnic-operator -p hybridnic-agent
	$(CARGO) build --release --locked -p kubectl-hybridnic
	install -D target/release/kubectl-hybridnic target/images/kubectl-hybridnic
	$(CARGO) rustc --release --locked -p hybridnic-cni --bin hybridnic-cni -- -C target-feature=+crt-static
	$(CARGO) rustc --release --locked -p hybridnic-sidecar --bin hybridnic-sidecar -- -C target-feature=+crt-static
	deploy/images/build.sh target/images $$(sed -n '/^\[workspace.package\]/,/^$$/s/^version = "\(.*\)"/\1/p' Cargo.toml) target/release

sbom: ## What is compiled into the programs, as CycloneDX, in target/images
	deploy/images/sbom.py target/images

docs: ## The documentation as a book, target/book/index.html; fails where a link leads nowhere
	@mdbook=$$(e2e/docs/mdbook.sh) && "$$mdbook" build docs
	$(CARGO) test $(ALL) --test written -- docs::

check: build ## Builds all; format, generated files
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(BUILT)/crdgen --check crds deploy/chart/files/crds
	$(BUILT)/values-table --check deploy/chart
	$(BUILT)/crdref --check docs/crd-reference.md

lint: ## Clippy, and the documentation of the code
	$(CARGO) clippy $(ALL) --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc $(ALL) --no-deps --quiet

fast: scripts deny msrv each fuzz ## What needs none of our builds: scripts, dependencies, the oldest Rust, each crate alone, parsers

scripts: ## Shell scripts, by shellcheck
	shellcheck .ci/run e2e/lab/*-init $$(find deploy e2e -name '*.sh')

deny: ## Dependencies: their licences, sources and duplicates, and what is known against them
	e2e/rust/deny.sh

msrv: ## Our programs with the oldest Rust that will do
	e2e/rust/msrv.sh

each: ## Each crate alone
	e2e/rust/each.sh

fuzz: ## What reads others' words, by random input that follows what it reaches: make fuzz SECONDS=600, RUNS=10000000, TARGET=netlink
	e2e/rust/fuzz.sh $(if $(RUNS),RUNS=$(RUNS),$(or $(SECONDS),6)) $(TARGET)

unit: ## Unit and property tests; no root
	$(CARGO) test $(ALL) --lib --bins --test calls --test session --test written

model: ## All states of a migration that a fault or two can lead to; MODEL_FAULTS and MODEL_NICS say how many
	$(CARGO) test $(ALL) --test model

model-deep: ## Larger worlds, most with three faults: minutes more, and not in CI
	MODEL_DEEP=1 $(CARGO) test $(ALL) --test model

monitoring: ## Alerts and dashboard, by promtool and Grafana's own schemas
	e2e/monitoring/check.sh

kernel: ## Real kernel and real QEMU, in network namespaces of their own
	$(CARGO) test $(ALL) --test handouts --test kernel --test listener --test pauses --test plugin --test pods --test privileges --test real_qemu --test stream

cluster: build ## Real kube-apiserver, etcd and controller manager
	$(CARGO) test $(ALL) --test cluster -- --test-threads=$(CLUSTERS)

cluster-oldest: build ## The API, the chart and the operator on the oldest Kubernetes that is supported
	tools=$$(e2e/controlplane/build.sh --oldest) && KUBEBUILDER_ASSETS=$$(dirname "$$(head -n1 <<<"$$tools" | cut -f2)") \
		$(CARGO) test $(ALL) --test cluster -- --test-threads=$(CLUSTERS) api:: chart:: operator:: $(DECISIONS:%=--skip operator::%)

kubevirt: build ## KubeVirt's own programs as processes, and a VM with our binding: its control half, then with libvirt and QEMU
	$(CARGO) test $(ALL) --test kubevirt -- --nocapture

kubevirt-nodes: build ## KubeVirt and Multus on real Kubernetes nodes: what users of KubeVirt do every day
	$(CARGO) test $(ALL) --test kubevirt_nodes -- --nocapture vms_keep_their_network

kubevirt-faults: build ## The same nodes: what goes wrong, what is rare, and a kernel without iommufd; not in CI, it takes too long
	$(CARGO) test $(ALL) --test kubevirt_nodes -- --nocapture --test-threads=1 faults_cost_no_vm_its_network faults_of_a_transfer_cost_no_vm_its_network \
		vms_live_through_what_is_rare vms_without_iommufd

lab: build ## Two emulated nodes with SR-IOV, the real programs, guests that migrate
	$(CARGO) test $(ALL) --test lab

nodes: build ## A cluster of real Kubernetes nodes: helm install to uninstall, VMs in pods
	$(CARGO) test $(ALL) --test lab_cluster -- --nocapture

bench-scale: build ## The operator with many NICs: make bench-scale NODES=500 NICS=5000 MIGRATIONS=200; see docs/benchmarks.md
	$(CARGO) build --release --locked -p hybridnic-operator
	@HYBRIDNIC_BIN=$(or $(CARGO_TARGET_DIR),target)/release $(BUILT)/bench-scale $(or $(NODES),50) $(or $(NICS),500) $(or $(MIGRATIONS),50)

bench: ## Figures; see docs/benchmarks.md
	@e2e/bench.sh

clean: ## Remove what was built; caches stay
	$(CARGO) clean
