# What people and CI run. Every target works from a fresh clone.

OUTER := tests/outer
KIT := client
BINARY := $(or $(CARGO_TARGET_DIR),target)/debug/sidegate

.DEFAULT_GOAL := help
.PHONY: help demo check kit kit-built image supply-chain test test-rust test-outer test-servers bench instructions \
  instructions-baseline soak

image: ## the container image without a registry (needs buildah); deploy/Dockerfile for all else
	cargo build --locked --release --no-default-features
	scripts/image.sh $(or $(CARGO_TARGET_DIR),target)/release/sidegate

supply-chain: ## licences, origins and advisories of all crates, and the list of them (needs cargo-deny, cargo-cyclonedx)
	cargo deny --locked check
	cargo cyclonedx --format json --all-features
