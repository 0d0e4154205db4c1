# The first half of a machine's process 1: bash as process 1 of new pid, mount, uts and
# ipc namespaces, in the network namespace of the machine, with its terminal as stdin,
# stdout and stderr. It builds the root and becomes systemd.
#
#   MACHINE_NAME     host name
#   MACHINE_ID       32 hexadecimal digits
#   MACHINE_CONSOLE  the terminal's name on the outside
#   MACHINE_CGROUPS  a line for each hierarchy: type, options, place below
#                    /sys/fs/cgroup (. for itself), directory on the outside
#   MACHINE_MASK     units that the machine does not have
#   MACHINE_NOTIFY   address to say READY=1 to
#   MACHINE_SYSTEMD  the program

set -eu

# The second half runs in the machine's control groups and sees nothing above them.
if [ "${1-}" != inside ]; then
	mount --make-rprivate /
	while read -r _ _ _ dir; do
		echo 0 >"$dir/cgroup.procs"
	done <<<"$MACHINE_CGROUPS"
	exec unshare --cgroup "$BASH" -c "$BASH_EXECUTION_STRING" boot inside
fi

# Any directory would do to build in: what is mounted over is not part of the root
# filesystem below.
stage=/tmp
mount -t tmpfs -o mode=755 tmpfs $stage
mkdir $stage/upper $stage/work $stage/root
mount -t overlay -o lowerdir=/,upperdir=$stage/upper,workdir=$stage/work overlay $stage/root
root=$stage/root

mount -t proc proc $root/proc
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount --bind $root/proc/sys/net $root/proc/sys/net
mount -o remount,bind,rw $root/proc/sys/net
mount -t sysfs sysfs $root/sys
while read -r type options place _; do
	if [ "$place" != . ] && ! mountpoint -q $root/sys/fs/cgroup; then
		mount -t tmpfs -o mode=755 tmpfs $root/sys/fs/cgroup
	fi
	mkdir -p "$root/sys/fs/cgroup/$place"
	mount -t "$type" -o "$options" cgroup "$root/sys/fs/cgroup/$place"
done <<<"$MACHINE_CGROUPS"
mount -o remount,bind,ro $root/sys

mount -t tmpfs -o mode=755 tmpfs $root/dev
while read -r name major minor; do
	mknod -m 666 "$root/dev/$name" c "$major" "$minor"
done <<-NODES
	null 1 3
	zero 1 5
	full 1 7
	random 1 8
	urandom 1 9
	tty 5 0
NODES
mkdir $root/dev/net $root/dev/pts
mknod -m 666 $root/dev/net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
ln -s /proc/self/fd $root/dev/fd
: >$root/dev/console
mount --bind "$MACHINE_CONSOLE" $root/dev/console
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp

# A host on which nobody has configured anything.
rm -rf $root/etc/systemd/system $root/etc/docker $root/etc/cni $root/etc/default/flanneld
mkdir -p $root/etc/systemd/system $root/etc/systemd/journald.conf.d
for unit in $MACHINE_MASK; do
	ln -s /dev/null "$root/etc/systemd/system/$unit"
done
# overlayfs, of which Docker makes its containers, has no overlayfs above it.
for dir in docker containerd; do
	mkdir -p $root/var/lib/$dir
	mount -t tmpfs -o mode=711 tmpfs $root/var/lib/$dir
done
[ ! -d $root/var/lib/etcd ] || find $root/var/lib/etcd -mindepth 1 -delete
rm -rf $root/var/log/journal
printf '[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n' >$root/etc/systemd/journald.conf.d/machine.conf
rm -f $root/etc/hostname $root/etc/hosts $root/etc/machine-id $root/etc/fstab
echo "$MACHINE_NAME" >$root/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost\n127.0.1.1 %s\n' "$MACHINE_NAME" >$root/etc/hosts
echo "$MACHINE_ID" >$root/etc/machine-id
: >$root/etc/fstab

cd $root
mkdir .before
pivot_root . .before
umount --lazy /.before
rmdir /.before
cd /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb \
	container=flannelkit NOTIFY_SOCKET="$MACHINE_NOTIFY" \
	"$MACHINE_SYSTEMD" --system --unit=multi-user.target --show-status=no
