# What people and CI run. Every target works from a fresh clone.

OUTER := tests/outer
KIT := client
BINARY := $(or $(CARGO_TARGET_DIR),target)/debug/sidegate

.DEFAULT_GOAL := help
.PHONY: help demo check kit kit-built release image supply-chain test test-rust test-outer test-servers bench soak instructions \
  instructions-baseline

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 22

demo: ## try it: gateway, provider, SPA and API in one process
	@scripts/install-tools.sh build
	cargo build --locked # without optimisation, which takes minutes longer and shows nothing here
	@$(or $(CARGO_TARGET_DIR),target)/debug/sidegate demo

check: ## format and lints
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

test: ## everything: tools, format, lints, Rust tests, instructions, then the outer tests
	@scripts/install-tools.sh build test
	@scripts/install-tools.sh servers || echo 'Without these, tests with providers that need them are skipped.'
	@$(MAKE) --no-print-directory check
	@$(MAKE) --no-print-directory test-rust
	@if scripts/install-tools.sh counting; then $(MAKE) --no-print-directory instructions COUNT=--if-possible; \
	else echo 'Without it, instructions are not counted.'; fi
	@$(MAKE) --no-print-directory test-outer

test-rust: ## unit and in-process tests
	cargo test --locked

kit: kit-built ## the SPA kit, also into the demo's page
	cp $(KIT)/dist/index.js src/demo/page/client.js

kit-built: $(KIT)/node_modules
	npm --prefix $(KIT) run --silent build

# Whatever hangs comes to an end: a file of tests, its hooks too, after 45 minutes (the first time a server is built
# there), and with a file's last test what it has left running.
NODE_TEST = SIDEGATE_BIN=$(abspath $(BINARY)) node --test --test-concurrency=1 --test-reporter=spec \
  --test-timeout=2700000 --test-force-exit

test-outer: $(OUTER)/node_modules kit-built ## the binary, real providers and a real browser
	cargo build --locked
	$(NODE_TEST) $(wildcard $(OUTER)/*.test.mjs)

test-servers: $(OUTER)/node_modules ## of test-outer what needs Keycloak (Java, Maven) and Ory Hydra (Go); nothing is skipped
	cargo build --locked
	SERVERS=required $(NODE_TEST) $(OUTER)/keycloak.test.mjs $(OUTER)/hydra.test.mjs

%/node_modules: %/package-lock.json
	npm --prefix $* ci --no-audit --no-fund --ignore-scripts
	@touch $@

bench: ## benchmarks
	cargo bench --locked

soak: ## an hour of mixed traffic: whether anything grows, whether any answer is wrong
	cargo bench --locked --bench soak -- --minutes 60

instructions: ## instructions per request, against the baseline (needs valgrind)
	cargo bench --locked --bench compare -- instructions $(COUNT)

instructions-baseline: ## the same, as the new baseline
	cargo bench --locked --bench compare -- instructions --bless

release: ## the program as it is released, profile-guided: takes a while (needs rustup's llvm-tools, redis-server)
	scripts/release.sh --no-default-features

image: release ## the container image of that without a registry (needs buildah); deploy/Dockerfile for all else
	scripts/image.sh $(or $(CARGO_TARGET_DIR),target)/release-profiled/sidegate

supply-chain: ## licences, origins and advisories of all crates, and the list of them (needs cargo-deny, cargo-cyclonedx)
	cargo deny --locked check
	cargo cyclonedx --format json --all-features
