#!/bin/sh
# install.sh: installs flanneld on this host, or takes it away. Run it from the directory that it is in, or from anywhere.
set -eu
umask 022

usage() {
  cat <<'TEXT'
usage: install.sh [--docker] [--containerd] [--enable] [--binary FILE]
       install.sh --uninstall

Installs flanneld, its systemd unit, man page, shell completions, and a sample configuration. Run again, it upgrades;
an /etc/default/flanneld that is there is never touched. Nothing is started or enabled without --enable.

  --docker       Docker gets its subnet from flanneld: a drop-in for docker.service
  --containerd   containerd waits for flanneld: a drop-in for containerd.service
  --enable       enable flanneld, and start it (again)
  --binary FILE  the program; default: flanneld beside this script (./image.sh --binary makes it)
  --uninstall    remove what was installed; the configuration only if it is as installed

Variables: PREFIX (/usr/local), SYSCONFDIR (/etc), UNITDIR (PREFIX/lib/systemd/system), and DESTDIR, which goes in front
of every path, to install into a tree that is not this host.
TEXT
}

fail() {
  printf 'install.sh: %s\n' "$*" >&2
  exit 1
}

dist=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
SYSCONFDIR=${SYSCONFDIR:-/etc}
UNITDIR=${UNITDIR:-$PREFIX/lib/systemd/system}
binary=$dist/flanneld
docker='' containerd='' enable='' uninstall=''

while [ $# -gt 0 ]; do
  case $1 in
    --docker) docker=1 ;;
    --containerd) containerd=1 ;;
    --enable) enable=1 ;;
    --uninstall) uninstall=1 ;;
    --binary)
      [ $# -gt 1 ] || fail "--binary: which file?"
      binary=$2
      shift
      ;;
    --binary=*) binary=${1#*=} ;;
    -h | --help)
      usage
      exit 0
      ;;
    *) fail "unknown argument $1 (--help lists them)" ;;
  esac
  shift
done

for path in "$PREFIX" "$SYSCONFDIR" "$UNITDIR" "${DESTDIR:-/}"; do
  case $path in
    /*) ;;
    *) fail "$path: not an absolute path" ;;
  esac
done
case $PREFIX in
  *[!A-Za-z0-9/._+-]*) fail "PREFIX=$PREFIX: letters that a unit file would not take" ;;
esac
[ -z "$DESTDIR" ] || [ -z "$enable" ] || fail "--enable and DESTDIR: what is installed elsewhere can't be started here"
if [ -n "$uninstall" ] && [ -n "$docker$containerd$enable" ]; then
  fail "--uninstall removes everything, the drop-ins too (give it alone)"
fi

bindir=$PREFIX/bin
config=$SYSCONFDIR/default/flanneld
docker_dropin=$UNITDIR/docker.service.d/40-flannel.conf
containerd_dropin=$UNITDIR/containerd.service.d/40-flannel.conf

# targets: every file but the configuration and the drop-ins, as "mode source target".
targets() {
  printf '%s\n' \
    "755 $binary $bindir/flanneld" \
    "644 $dist/flanneld.service $UNITDIR/flanneld.service" \
    "644 $dist/flanneld.8 $PREFIX/share/man/man8/flanneld.8" \
    "644 $dist/completion/flanneld.bash $PREFIX/share/bash-completion/completions/flanneld" \
    "644 $dist/completion/_flanneld $PREFIX/share/zsh/site-functions/_flanneld" \
    "644 $dist/completion/flanneld.fish $PREFIX/share/fish/vendor_completions.d/flanneld.fish" \
    "644 $dist/flanneld.service.d/50-extension.conf.example $PREFIX/share/doc/flanneld/50-extension.conf.example" \
    "644 $dist/flanneld.service.d/50-etcd-tls.conf.example $PREFIX/share/doc/flanneld/50-etcd-tls.conf.example"
}

# systemd reports whether the installed tree is this host's, and systemd runs it.
systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

# prune removes a directory that was made here, if it is empty, and then the one above it. On a host those above are
# the system's.
prune() {
  case $1 in
    "" | /) return 0 ;;
    */flanneld | *.service.d) ;;
    *) [ -n "$DESTDIR" ] || return 0 ;;
  esac
  if rmdir "$DESTDIR$1" 2>/dev/null; then prune "$(dirname "$1")"; fi
}

if [ -n "$uninstall" ]; then
  if systemd && systemctl cat flanneld.service >/dev/null 2>&1; then
    systemctl disable --now flanneld.service || fail "systemctl disable --now flanneld: it fails, so nothing is removed"
  fi
  if [ -f "$DESTDIR$config" ]; then
    if cmp -s "$dist/flanneld.default" "$DESTDIR$config"; then
      rm -f "$DESTDIR$config"
    else
      echo "kept $DESTDIR$config, which was changed"
    fi
  fi
  { targets | while read -r _ _ target; do echo "$target"; done; echo "$docker_dropin"; echo "$containerd_dropin"; } |
    while read -r target; do
      rm -f "$DESTDIR$target"
      prune "$(dirname "$target")"
    done
  prune "$SYSCONFDIR/default"
  if systemd; then systemctl daemon-reload; fi
  cat <<'TEXT'
flanneld is removed. Device, rules, subnet file and lease are still there, for a flanneld to come; to remove them, run
"flanneld cleanup -release" before. Docker remembers its subnet: give it another one as "bip" in /etc/docker/daemon.json.
TEXT
  exit 0
fi

[ -f "$binary" ] || fail "$binary: there is no program (make it with $dist/image.sh --binary, or give --binary FILE)"
# The files are listed with blanks between them.
case $dist$binary$DESTDIR$UNITDIR$SYSCONFDIR in
  *[[:space:]]*) fail "a path with a blank in it: $dist $binary $DESTDIR" ;;
esac

list=$(targets)
[ -n "$docker" ] && list="$list
644 $dist/docker.service.d/40-flannel.conf $docker_dropin"
[ -n "$containerd" ] && list="$list
644 $dist/containerd.service.d/40-flannel.conf $containerd_dropin"
[ -e "$DESTDIR$config" ] || list="$list
644 $dist/flanneld.default $config"

# First everything is written beside its target, then each file is renamed: what fails before leaves the old
# installation as it was, and no program or unit is ever a half.
new=.install.$$
drop() {
  printf '%s\n' "$list" | while read -r _ _ target; do rm -f "$DESTDIR$target$new"; done
}
put() {
  case $1 in
    */flanneld.service) sed "s|/usr/local/bin/|$bindir/|g" "$1" >"$2" ;;
    *) cp "$1" "$2" ;;
  esac
}
trap drop EXIT
trap 'exit 1' HUP INT TERM

printf '%s\n' "$list" | while read -r mode source target; do
  [ -r "$source" ] || fail "$source: missing; this is not a complete copy of the directory dist"
  mkdir -p "$DESTDIR$(dirname "$target")" || fail "can't make the directory of $DESTDIR$target (are you root? or set DESTDIR or PREFIX)"
  put "$source" "$DESTDIR$target$new" && chmod "$mode" "$DESTDIR$target$new" && continue
  fail "can't write $DESTDIR$target (nothing is changed)"
done
printf '%s\n' "$list" | while read -r _ _ target; do
  mv -f "$DESTDIR$target$new" "$DESTDIR$target" || fail "can't replace $DESTDIR$target (run it again)"
done

if systemd; then systemctl daemon-reload; fi
if [ -n "$enable" ]; then
  systemd || fail "--enable: systemd does not run here; everything is installed"
  systemctl enable flanneld.service
  systemctl restart --no-block flanneld.service # it may wait for etcd as long as it takes
fi

cat <<TEXT
flanneld is installed. What is next:
  1. Tell it where etcd is, in $config: FLANNELD_ETCD_ENDPOINTS=http://HOST:2379
  2. Once for all hosts: etcdctl put /coreos.com/network/config '{"Network":"10.5.0.0/16","Backend":{"Type":"udp"}}'
TEXT
if [ -n "$enable" ]; then
  echo "  3. It is starting; see how it is with: flanneld status"
else
  echo "  3. systemctl enable --now flanneld, and see how it is with: flanneld status"
fi
if [ -n "$docker" ]; then
  echo "  4. systemctl restart docker (its containers stop, and are on the overlay network when they start again)"
fi
