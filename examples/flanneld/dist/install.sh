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

Variables: PREFIX (/usr/local), SYSCONFDIR (/etc), UNITDIR (PREFIX/lib/systemd/system below /usr and /usr/local, else
SYSCONFDIR/systemd/system), and DESTDIR, which goes in front of every path, to install into a tree that is not this host.
--uninstall needs the same as the installation.
TEXT
}

warn() { printf 'install.sh: %s\n' "$*" >&2; }

fail() {
  warn "$*"
  exit 1
}

dist=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
DESTDIR=${DESTDIR:-}
PREFIX=${PREFIX:-/usr/local}
SYSCONFDIR=${SYSCONFDIR:-/etc}
case ${PREFIX%/} in
  /usr | /usr/local) UNITDIR=${UNITDIR:-$PREFIX/lib/systemd/system} ;;
  *) UNITDIR=${UNITDIR:-$SYSCONFDIR/systemd/system} ;; # systemd looks nowhere below /opt
esac
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
# The files are listed with blanks between them.
case $DESTDIR$UNITDIR$SYSCONFDIR in
  *[[:space:]]*) fail "a path with a blank in it: $DESTDIR $UNITDIR $SYSCONFDIR" ;;
esac
[ -z "$DESTDIR" ] || [ -z "$enable" ] || fail "--enable and DESTDIR: what is installed elsewhere can't be started here"
if [ -n "$uninstall" ] && [ -n "$docker$containerd$enable" ]; then
  fail "--uninstall removes everything, the drop-ins too (give it alone)"
fi

bindir=$PREFIX/bin
config=$SYSCONFDIR/default/flanneld
unit=$UNITDIR/flanneld.service
docker_dropin=$UNITDIR/docker.service.d/40-flannel.conf
containerd_dropin=$UNITDIR/containerd.service.d/40-flannel.conf

# targets: every file but the configuration and the drop-ins, as "mode source target". A source is below $dist, but for
# program, which is $binary.
targets() {
  printf '%s\n' \
    "755 program $bindir/flanneld" \
    "644 flanneld.service $unit" \
    "644 flanneld.8 $PREFIX/share/man/man8/flanneld.8" \
    "644 completion/flanneld.bash $PREFIX/share/bash-completion/completions/flanneld" \
    "644 completion/_flanneld $PREFIX/share/zsh/site-functions/_flanneld" \
    "644 completion/flanneld.fish $PREFIX/share/fish/vendor_completions.d/flanneld.fish" \
    "644 flanneld.service.d/50-extension.conf.example $PREFIX/share/doc/flanneld/50-extension.conf.example" \
    "644 flanneld.service.d/50-etcd-tls.conf.example $PREFIX/share/doc/flanneld/50-etcd-tls.conf.example"
}

# systemd reports whether the installed tree is this host's, and systemd runs it.
systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ] && command -v systemctl >/dev/null; }

# fragment prints the file that systemd takes for flanneld.service, if any; ours reports whether it is this installation's
# (on many hosts /lib is a link to /usr/lib).
fragment() { systemctl show -p FragmentPath flanneld.service 2>/dev/null | sed -n 's/^FragmentPath=//p'; }
ours() { [ -n "$1" ] && [ "$(readlink -f "$1")" = "$(readlink -f "$unit")" ]; }

# sweep removes what an installation that was killed has left beside a target. The number is its process.
sweep() {
  for left in "$1".install.*; do
    if [ -f "$left" ] && ! kill -0 "${left##*.install.}" 2>/dev/null; then rm -f "$left"; fi
  done
}

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

if [ -f "$DESTDIR$unit" ] && ! grep -q 'install\.sh' "$DESTDIR$unit"; then
  fail "$DESTDIR$unit: a unit that is not from here, so nothing is changed (move it away, or give another UNITDIR)"
fi

if [ -n "$uninstall" ]; then
  list=$(targets | while read -r _ _ target; do echo "$target"; done; echo "$docker_dropin"; echo "$containerd_dropin")
  found=$(echo "$list" | while read -r target; do [ ! -f "$DESTDIR$target" ] || echo "$target"; done)
  [ -n "$found" ] || fail "nothing is installed in PREFIX=$PREFIX and UNITDIR=$UNITDIR below ${DESTDIR:-/}, so nothing is removed" \
    "(give the PREFIX, UNITDIR and DESTDIR that it was installed with)"
  [ -f "$DESTDIR$unit" ] || warn "warning: $DESTDIR$unit was not there; a unit elsewhere (another UNITDIR) stays"
  [ -f "$DESTDIR$docker_dropin" ] && docker=1
  endpoints=$(sed -n 's/^FLANNELD_ETCD_ENDPOINTS=//p' "$DESTDIR$config" 2>/dev/null | tail -n 1)
  if systemd; then
    used=$(fragment)
    if ours "$used"; then
      systemctl disable --now flanneld.service || fail "systemctl disable --now flanneld: it fails, so nothing is removed"
    elif [ -n "$used" ]; then
      warn "systemd's flanneld.service is $used, which is not from here: it is neither stopped nor disabled"
    fi
  fi
  if [ -f "$DESTDIR$config" ]; then
    if cmp -s "$dist/flanneld.default" "$DESTDIR$config"; then
      rm -f "$DESTDIR$config"
    else
      echo "kept $DESTDIR$config, which was changed"
    fi
  fi
  echo "$list" | while read -r target; do
    rm -f "$DESTDIR$target" || fail "can't remove $DESTDIR$target (are you root?)"
    sweep "$DESTDIR$target"
    prune "$(dirname "$target")"
  done
  prune "$SYSCONFDIR/default"
  if systemd; then systemctl daemon-reload; fi
  echo "flanneld is removed."
  # The installed program is gone by now, and perhaps the configuration, so both are named.
  [ -f "$DESTDIR/run/flannel/subnet.env" ] && cat <<TEXT
Device, rules, subnet file and lease are still there, for a flanneld to come. This removes them, with the options of
etcd (-etcd-prefix, -etcd-cafile, ...) that the daemon had; "$dist/image.sh" --binary makes the program:
  "$dist/flanneld" cleanup -release -etcd-endpoints=${endpoints:-http://HOST:2379}
TEXT
  [ -n "$docker" ] && cat <<TEXT
Docker remembers its subnet: give it another one as "bip" in /etc/docker/daemon.json, and restart it. Take this "bip" out
again before flanneld is installed again with --docker: Docker does not start when it is told twice.
TEXT
  exit 0
fi

[ -f "$binary" ] || fail "$binary: there is no program (make it with $dist/image.sh --binary, or give --binary FILE)"
[ -s "$binary" ] || fail "$binary: the file is empty (make it with $dist/image.sh --binary, or give --binary FILE)"

list=$(targets)
[ -n "$docker" ] && list="$list
644 docker.service.d/40-flannel.conf $docker_dropin"
[ -n "$containerd" ] && list="$list
644 containerd.service.d/40-flannel.conf $containerd_dropin"
[ -d "$DESTDIR$config" ] && fail "$DESTDIR$config: a directory where a file should be (nothing is changed)"
# A link is the operator's, even if what it leads to is not there yet.
[ -e "$DESTDIR$config" ] || [ -L "$DESTDIR$config" ] || list="$list
644 flanneld.default $config"

# First everything is written beside its target, then each file is renamed: what fails before leaves the old
# installation as it was, and no program or unit is ever a half.
new=.install.$$
drop() {
  printf '%s\n' "$list" | while read -r _ _ target; do rm -f "$DESTDIR$target$new"; done
}
put() {
  case $1 in
    */flanneld.service | *.conf) sed "s|/usr/local/bin/|$bindir/|g" "$1" >"$2" ;;
    *) cp "$1" "$2" ;;
  esac
}
trap drop EXIT
trap 'exit 1' HUP INT TERM

# runs reports whether a file is this program, for this machine. -version because original flannel's ends after that, too,
# whereas with "version" it would start.
runs() { case $("$1" -version 2>&1) in flanneld*) ;; *) return 1 ;; esac; }

printf '%s\n' "$list" | while read -r mode source target; do
  case $source in
    program) source=$binary ;;
    *) source=$dist/$source ;;
  esac
  [ ! -d "$DESTDIR$target" ] || fail "$DESTDIR$target: a directory where a file should be (nothing is changed)"
  [ -r "$source" ] || fail "$source: missing; this is not a complete copy of the directory dist"
  mkdir -p "$DESTDIR$(dirname "$target")" || fail "can't make the directory of $DESTDIR$target (are you root? or set DESTDIR or PREFIX)"
  sweep "$DESTDIR$target"
  { put "$source" "$DESTDIR$target$new" && chmod "$mode" "$DESTDIR$target$new"; } || fail "can't write $DESTDIR$target (nothing is changed)"
  if [ "$source" = "$binary" ] && [ -z "$DESTDIR" ] && ! runs "$target$new"; then
    fail "$binary: \"$binary -version\" does not say flanneld: another program, or for another machine (nothing is changed)"
  fi
done
before=''
if systemd; then before=$(fragment); fi
printf '%s\n' "$list" | while read -r _ _ target; do
  mv -f "$DESTDIR$target$new" "$DESTDIR$target" || fail "can't replace $DESTDIR$target (run it again)"
done

if [ -n "$docker" ] && told=$(grep -oE '"(bip|mtu|ip-masq)"[[:space:]]*:' "$DESTDIR/etc/docker/daemon.json" 2>/dev/null); then
  warn "warning: take $(echo "$told" | tr -d ' :\t' | tr '\n' ' ')out of $DESTDIR/etc/docker/daemon.json:" \
    "Docker does not start when it is told twice, there and by flanneld"
fi
if systemd; then
  systemctl daemon-reload
  used=$(fragment)
  if ! ours "$used"; then
    what="systemd takes ${used:-no file} for flanneld.service, not $unit"
    remedy="move the other one away, or give a UNITDIR that systemd searches first; then systemctl daemon-reload"
    [ -z "$enable" ] || fail "--enable: $what: everything is installed, but nothing enabled or started ($remedy)"
    warn "warning: $what ($remedy)"
  elif [ -n "$before" ] && ! ours "$before"; then
    warn "warning: $unit now hides $before: the next start of flanneld is the one from here"
  fi
fi
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
  echo "  3. It is starting; see how it is with: flanneld status (as root)"
else
  echo "  3. systemctl enable --now flanneld, and see how it is with: flanneld status (as root)"
fi
if [ -n "$docker" ]; then
  echo "  4. systemctl restart docker (its containers stop, and are on the overlay network when they start again)"
fi
