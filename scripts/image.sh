#!/usr/bin/env bash
# The image of deploy/Dockerfile's final stage without a registry: FROM scratch, the program, the libraries it is linked
# with, certificate authorities, and nothing else. Needs buildah. Usage: scripts/image.sh BINARY [NAME]
#
# It proves that the image runs as another user than root, with no shell in it, and says how large it is.
set -euo pipefail

binary=${1:?usage: $0 BINARY [NAME]}
name=${2:-sidegate}
files=$(mktemp -d)
trap 'rm -rf "$files"' EXIT

install -D -m 0755 "$binary" "$files/usr/local/bin/sidegate"
strip "$files/usr/local/bin/sidegate"
ldd "$binary" | grep -o '/[^ ]*' | while read -r library; do
  install -D -m 0755 "$(readlink -f "$library")" "$files$library"
done
install -D -m 0644 /etc/ssl/certs/ca-certificates.crt "$files/etc/ssl/certs/ca-certificates.crt"
bytes=$(du --summarize --bytes "$files" | cut -f1)
if ((bytes > 30000000)); then
  echo "the image has $bytes bytes, which is more than 30 MB" >&2
  exit 1
fi

# Works within a container too: no overlay, no namespace.
buildah() { command buildah --storage-driver "${STORAGE_DRIVER:-vfs}" "$@"; }
container=$(buildah from scratch)
trap 'buildah rm "$container" >/dev/null; rm -rf "$files"' EXIT
buildah copy --quiet "$container" "$files" / >/dev/null
buildah config --user 65532:65532 --port 8080 --entrypoint '["/usr/local/bin/sidegate"]' --cmd run \
  --label org.opencontainers.image.title=sidegate --label org.opencontainers.image.licenses=Apache-2.0 "$container"

buildah run --isolation chroot "$container" -- /usr/local/bin/sidegate --version
if buildah run --isolation chroot "$container" -- /bin/sh -c true 2>/dev/null; then
  echo "there is a shell in the image" >&2
  exit 1
fi
buildah commit --quiet "$container" "$name" >/dev/null
buildah images --format '{{.Name}}:{{.Tag}} {{.Size}}' "$name"
