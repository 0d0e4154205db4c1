#!/usr/bin/env bash
# setup.sh: makes a machine able to run package vm's tests: qemu, and a kernel with all its modules.
#
#   internal/vm/setup.sh        installs and fetches what is missing; quick when nothing is
#   internal/vm/setup.sh -n     changes nothing, only says whether everything is there
#
# Exit 0: tests can run. Exit 3: they cannot on this machine, the last line says why. Any other: something broke.
#
# qemu comes from the distribution, by apt-get and as root. The kernel is Debian's cloud image, unpacked into
# $FLANNELKIT_VM_KERNEL or ${XDG_CACHE_HOME:-~/.cache}/flannelkit/vm: about 120 MB. It is not installed, so neither
# /boot nor /lib/modules nor a boot loader hears of it.
set -uo pipefail

fetch=1
[[ ${1:-} != -n ]] || fetch=
dir=${FLANNELKIT_VM_KERNEL:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/flannelkit/vm}

# cannot TEXT: says why there will be no machine, and ends.
cannot() {
  printf 'no virtual machine: %s\n' "$*"
  exit 3
}

# kernel ROOT: whether a kernel and its modules are below it, found as package vm finds them.
kernel() {
  local image version
  for image in "$1"/boot/vmlinuz-*; do
    version=${image##*/vmlinuz-}
    [[ -r $image ]] || continue
    [[ ! -d $1/lib/modules/$version && ! -d $1/usr/lib/modules/$version ]] || return 0
  done
  return 1
}

have_kernel() {
  kernel "$dir" || { [[ -z ${FLANNELKIT_VM_KERNEL:-} ]] && kernel ""; }
}

# apt COMMAND...: apt-get without questions. When it fails the lists may be old or missing, so they are fetched, once.
updated=
apt() {
  local quiet=(env DEBIAN_FRONTEND=noninteractive apt-get -qq -y -o DPkg::Lock::Timeout=60
    -o Acquire::Retries=2 -o Acquire::http::Timeout=20)
  "${quiet[@]}" "$@" >"$tmp/apt.log" 2>&1 && return
  if [[ -z $updated ]]; then
    updated=1
    "${quiet[@]}" update >>"$tmp/apt.log" 2>&1
    "${quiet[@]}" "$@" >>"$tmp/apt.log" 2>&1 && return
  fi
  return 1
}

# why: what apt-get complained of last.
why() { grep -aE '^(E|Err|W):' "$tmp/apt.log" | tail -n 1; }

# kernel_package: the package that the meta package depends on today.
kernel_package() {
  apt-cache depends --important linux-image-cloud-amd64 2>/dev/null |
    sed -n 's/^ *Depends: \(linux-image-[0-9][^ ]*-cloud-amd64\)$/\1/p' | tail -n 1
}

[[ $(uname -s)/$(uname -m) == Linux/x86_64 ]] || cannot "only Linux on x86-64 has one so far, this is $(uname -s) on $(uname -m)"

qemu=1
command -v qemu-system-x86_64 >/dev/null || qemu=
if [[ -n $qemu ]] && have_kernel; then
  exit 0
fi
if [[ -z $fetch ]]; then
  [[ -n $qemu ]] || cannot "qemu-system-x86_64 is not in PATH"
  cannot "no kernel with modules in $dir"
fi
command -v apt-get >/dev/null || cannot "qemu-system-x86_64 or a kernel in $dir is missing, and there is no apt-get to fetch it"

tmp=$(mktemp -d) || exit 1
trap 'rm -rf "$tmp"' EXIT

if [[ -z $qemu ]]; then
  [[ $(id -u) == 0 ]] || cannot "qemu is missing, and installing it takes root (apt-get install --no-install-recommends qemu-system-x86)"
  apt install --no-install-recommends qemu-system-x86 || cannot "apt-get cannot install qemu-system-x86: $(why)"
  command -v qemu-system-x86_64 >/dev/null || cannot "qemu-system-x86 is installed and brought no qemu-system-x86_64"
fi

if ! have_kernel; then
  package=$(kernel_package)
  if [[ -z $package ]]; then # the lists are missing, or this is no Debian
    [[ $(id -u) == 0 ]] && apt update
    package=$(kernel_package)
  fi
  [[ -n $package ]] || cannot "apt-get knows no linux-image-cloud-amd64, Debian's kernel (unpack any into $dir: boot/vmlinuz-*, lib/modules/*)"
  (cd "$tmp" && apt download "$package") || cannot "apt-get cannot download $package: $(why)"
  # Complete or not there at all: unpacked next to its place, then moved.
  mkdir -p "$dir" && new=$(mktemp -d "$dir.XXXXXX") && trap 'rm -rf "$tmp" "$new"' EXIT || exit 1
  dpkg-deb -x "$tmp"/*.deb "$new" || exit 1
  chmod 755 "$new" && kernel "$new" || { echo "setup.sh: $package holds no boot/vmlinuz-* with lib/modules/*"; exit 1; }
  mkdir -p "$dir/boot" "$dir/lib/modules"
  for modules in "$new"/lib/modules/* "$new"/usr/lib/modules/*; do
    [[ -d $modules ]] || continue
    version=${modules##*/}
    rm -rf "$dir/lib/modules/$version"
    mv "$modules" "$dir/lib/modules/" && mv "$new/boot/"*"-$version" "$dir/boot/" || exit 1
  done
  have_kernel || { echo "setup.sh: $dir holds no kernel after unpacking $package"; exit 1; }
fi
printf 'virtual machine: %s, kernel in %s\n' "$(qemu-system-x86_64 --version | head -n 1)" "$dir"
