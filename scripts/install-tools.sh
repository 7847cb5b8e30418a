#!/usr/bin/env bash
# Installs what is missing of the tools named on the command line: `build`, `test`, `counting`, `servers`. As root on
# Debian or Ubuntu by apt-get, otherwise it says what to install and ends with 1.
set -euo pipefail

missing=()       # what is lacking, for people
packages=()      # Debian packages that bring it

need() { # need NAME PACKAGE COMMAND...: one of the commands must exist
  local name=$1 package=$2 command
  shift 2
  for command in "$@"; do
    command -v "$command" >/dev/null 2>&1 && return
  done
  missing+=("$name")
  packages+=("$package")
}

node_is_new_enough() {
  node --test-force-exit -e 0 >/dev/null 2>&1
}

look_for() {
  missing=() packages=()
  local set
  for set in "$@"; do
    case $set in
      build)
        need 'a C compiler' build-essential cc gcc clang
        need cmake cmake cmake
        ;;
      test)
        need redis-server redis-server redis-server
        need redis-sentinel redis-sentinel redis-sentinel
        need openssl openssl openssl
        need bubblewrap bubblewrap bwrap
        need Chromium chromium chromium chromium-browser google-chrome
        need npm npm npm
        # Not on everybody's path, where Debian puts it.
        PATH=$PATH:/usr/sbin need nginx nginx-light nginx
        node_is_new_enough || { missing+=('Node.js 22 or newer, or 20.14'); packages+=(nodejs); }
        ;;
      counting)
        need valgrind valgrind valgrind
        ;;
      servers)
        # What brings and runs the providers of the outer tests. Go is not among them: a distribution's is often too
        # old, and who has it gets what is built by it.
        need 'Java 17 or newer' default-jre-headless java
        need Maven maven mvn
        ;;
      *)
        echo "usage: $0 [build] [test] [counting] [servers]" >&2
        exit 64
        ;;
    esac
  done
}

look_for "$@"
if ((${#missing[@]})) && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing: ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null
  hash -r
  look_for "$@"
fi
if ! command -v cargo >/dev/null 2>&1; then
  missing+=('Rust, from https://rustup.rs')
fi
if ((${#missing[@]})); then
  printf 'Please install first: %s\n' "${missing[@]}" >&2
  exit 1
fi
