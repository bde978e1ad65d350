# The one list of commands. `make demo` and `make test` do all set-up themselves on Debian 12 with cargo.
SHELL := /bin/bash
.DEFAULT_GOAL := help
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
BIN := $(or $(CARGO_TARGET_DIR),target)/release/sluice

# What running needs, and what the tests drive besides (real clients, in real namespaces).
RUN_PACKAGES := nftables curl
TEST_PACKAGES := $(RUN_PACKAGES) iproute2 python3 python3-pip nodejs npm git wget gcc make strace openssl default-jdk-headless iputils-ping libcap2-bin golang-go python3-psutil
# 300 MB, and not in every package index: what needs it is skipped where it cannot be had.
LARGE_PACKAGES := chromium

.PHONY: help demo test build lint fmt bench deny run-packages test-packages clean

help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

demo: run-packages build ## A tour on this machine: sandbox, proxy, bypasses named; no internet needed
	@$(SUDO) $(BIN) demo

test: test-packages ## Every test, as root, in namespaces they make themselves
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" cargo test --workspace --no-fail-fast

build: ## The release binary, in target/release/sluice
	@cargo build --release --bin sluice

bench: ## Every cost beside its yardstick, about ten minutes on a quiet machine
	@$(call install,$(RUN_PACKAGES) iproute2)
	@cargo build --release -p sluice -p sluice-bench
	@$(SUDO) $(dir $(BIN))sluice-bench --nice -20 targets --peers
	@$(SUDO) $(dir $(BIN))sluice-bench --nice -20 tls --peers
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" cargo run -q --release -p sluice-seccomp --example cost
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" cargo bench -q -p sluice --bench policy --bench reload

lint: ## Formatting, clippy and documentation, warnings refused
	@cargo fmt --all --check
	@cargo clippy --workspace --all-targets -- -D warnings
	@RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

deny: ## Licences, advisories and duplicates of the dependencies (needs cargo-deny)
	@cargo deny check

fmt: ## Format the code
	@cargo fmt --all

clean: ## Remove what was built
	@cargo clean

# Installs only what is missing, so that a machine that has it all needs no package index.
run-packages:
	@$(call install,$(RUN_PACKAGES))

test-packages:
	@$(call install,$(TEST_PACKAGES))
	@$(call install,$(LARGE_PACKAGES)) || echo "WARNING: $(LARGE_PACKAGES) could not be installed: its test is skipped, and counted as ignored" >&2

define install
missing=""; for command in nft:nftables curl:curl ip:iproute2 python3:python3 pip3:python3-pip node:nodejs npm:npm git:git wget:wget gcc:gcc make:make strace:strace openssl:openssl javac:default-jdk-headless ping:iputils-ping setcap:libcap2-bin go:golang-go chromium:chromium; do \
  package=$${command#*:}; \
  case " $(1) " in *" $$package "*) PATH=$$PATH:/usr/sbin:/sbin command -v $${command%%:*} >/dev/null || missing="$$missing $$package";; esac; \
done; \
case " $(1) " in *" python3-psutil "*) /usr/bin/python3 -c 'import psutil' 2>/dev/null || missing="$$missing python3-psutil";; esac; \
if [ -n "$$missing" ]; then \
  echo "installing$$missing"; \
  $(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq $$missing >/dev/null; \
fi
endef
