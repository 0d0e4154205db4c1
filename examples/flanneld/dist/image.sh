#!/bin/sh
# image.sh: builds flanneld as one static binary, and an image of it. It needs Go and this repository; and docker or
# podman, unless the image is to be a file.
set -eu

usage() {
  cat <<'TEXT'
usage: image.sh [--arch ARCH] [--tag NAME[:TAG]] [--engine docker|podman] [--output FILE] [--ca FILE]
       image.sh [--arch ARCH] --binary

  --arch ARCH     amd64, arm64, arm, 386, riscv64, ...; default: this machine's
  --tag NAME      what the image is called (flanneld)
  --engine NAME   what builds it; default: docker, else podman, whichever is there
  --output FILE   no engine: write an archive that docker load, podman load and ctr images import read
  --ca FILE       authorities for https to clouds and public etcds, PEM; default: this machine's. An etcd with an authority
                  of its own needs none of them, but -etcd-cafile
  --binary        only the program, as flanneld beside this script, where install.sh finds it
TEXT
}

fail() {
  printf 'image.sh: %s\n' "$*" >&2
  exit 1
}

dist=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
arch='' tag=flanneld engine='' output='' ca='' only=''
while [ $# -gt 0 ]; do
  case $1 in
    --binary) only=1 ;;
    -h | --help)
      usage
      exit 0
      ;;
    --arch | --tag | --engine | --output | --ca)
      [ $# -gt 1 ] || fail "$1: a value is missing"
      case $1 in
        --arch) arch=$2 ;;
        --tag) tag=$2 ;;
        --engine) engine=$2 ;;
        --output) output=$2 ;;
        --ca) ca=$2 ;;
      esac
      shift
      ;;
    *) fail "unknown argument $1 (--help lists them)" ;;
  esac
  shift
done
command -v go >/dev/null || fail "there is no go (it builds the program)"
[ -n "$arch" ] || arch=$(go env GOARCH)
case $tag in *:*) ;; *) tag=$tag:latest ;; esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
root=$work/rootfs
mkdir "$root"

# -s -w: no tables for debuggers; stack traces stay readable.
CGO_ENABLED=0 GOOS=linux GOARCH=$arch go build -C "$dist/.." -trimpath -ldflags '-s -w' -o "$root/flanneld" . ||
  fail "the program does not build for $arch"
if [ -n "$only" ]; then
  cp "$root/flanneld" "$dist/.flanneld.$$" && mv -f "$dist/.flanneld.$$" "$dist/flanneld"
  echo "$dist/flanneld"
  exit 0
fi

if [ -z "$ca" ]; then
  for file in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
    if [ -r "$file" ]; then
      ca=$file
      break
    fi
  done
fi
if [ -n "$ca" ]; then
  [ -r "$ca" ] || fail "$ca: no such file"
  mkdir -p "$root/etc/ssl/certs"
  cp -L "$ca" "$root/etc/ssl/certs/ca-certificates.crt" # where Go looks first
  chmod 644 "$root/etc/ssl/certs/ca-certificates.crt"
else
  echo "image.sh: no authorities on this machine: the image can't speak https to clouds (give --ca FILE)" >&2
fi

if [ -z "$output" ]; then
  if [ -z "$engine" ]; then
    for engine in docker podman none; do command -v "$engine" >/dev/null && break; done
    [ "$engine" != none ] || fail "there is neither docker nor podman (--output FILE needs none)"
  fi
  cp "$dist/Containerfile" "$work/Containerfile"
  "$engine" build --platform "linux/$arch" -f "$work/Containerfile" -t "$tag" "$work"
  exit 0
fi

# An archive as docker save writes it. The same input makes the same bytes.
command -v sha256sum >/dev/null || fail "there is no sha256sum (--output needs it)"
layer=$work/layer.tar
tar -C "$root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 --format=ustar -cf "$layer" .
digest=$(sha256sum "$layer" | cut -d ' ' -f 1)
cat >"$work/config.json" <<TEXT
{"created":"1970-01-01T00:00:00Z","architecture":"$arch","os":"linux","config":{"Entrypoint":["/flanneld"]},"rootfs":{"type":"layers","diff_ids":["sha256:$digest"]}}
TEXT
config=$(sha256sum "$work/config.json" | cut -d ' ' -f 1).json
mv "$work/config.json" "$work/$config"
printf '[{"Config":"%s","RepoTags":["%s"],"Layers":["layer.tar"]}]\n' "$config" "$tag" >"$work/manifest.json"
tar -C "$work" --owner=0 --group=0 --numeric-owner --mtime=@0 --format=ustar -cf "$output.$$" manifest.json "$config" layer.tar
mv -f "$output.$$" "$output"
echo "$output"
