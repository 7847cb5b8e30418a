#!/usr/bin/env bash
# Builds the program as it is released: twice, the second time knowing what the first one was seen to do under load
# (profile-guided optimisation). Takes two to three times as long as `cargo build --release`; docs/performance.md says
# what it is worth. Needs rustup's llvm-tools and, for the load, redis-server.
#
# Usage: scripts/release.sh [OPTION OF CARGO BUILD]...      --no-default-features leaves the demo out
# The program is at release-profiled/sidegate below the target directory.
set -euo pipefail
cd "$(dirname "$0")/.."

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/release-profiled
host=$(rustc -vV | sed -n 's/^host: //p')
profdata=$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
if [[ ! -x $profdata ]]; then
  echo "llvm-profdata is missing: rustup component add llvm-tools" >&2
  exit 1
fi
counts=$target/counts
rm -rf "$counts"
# With --target, so that build scripts and macros are not built to count. The symbols of both builds have to agree: the same
# options, but for the flags.
build() { # FLAG [OPTION]...
  local flag=$1
  shift
  RUSTFLAGS="${RUSTFLAGS:-} $flag" CARGO_TARGET_DIR=$target cargo build --locked --release --bin sidegate --target "$host" "$@"
}
built=$target/$host/release/sidegate

build "-Cprofile-generate=$counts" "$@"
cp "$built" "$target/counting"
# The load's own speed does not matter.
cargo bench --locked --profile dev --bench compare -- train "$target/counting"
"$profdata" merge --output "$target/merged.profdata" "$counts"
build "-Cprofile-use=$target/merged.profdata" "$@"
cp "$built" "$target/sidegate"
echo "$target/sidegate"
