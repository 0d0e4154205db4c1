package cost

import (
	"bytes"
	"strconv"
	"time"
)

// tick is the unit of the times in /proc/PID/stat: USER_HZ, which is 100 on every Linux.
const tick = 10 * time.Millisecond

// A process is what /proc/PID/stat says of one.
type process struct {
	pid, parent int
	start       uint64 // ticks after boot; tells it from a later process with the same number
	kernel      bool   // a kernel thread
	used        uint64 // ticks of processor time, of all its threads, the ended ones too
	reaped      uint64 // the same of children that have ended and were waited for, with theirs
}

// pfKThread is the flag of a kernel thread (PF_KTHREAD in the kernel's include/linux/sched.h).
const pfKThread = 0x00200000

// parseProcess reads a stat file (proc_pid_stat(5)). The second field, the name, may hold spaces and brackets.
func parseProcess(pid int, stat []byte) (process, bool) {
	p := process{pid: pid}
	fields := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(fields) < 20 {
		return p, false
	}
	number := func(field int) uint64 { // counted as in the manual page, from 1
		n, err := strconv.ParseInt(string(fields[field-3]), 10, 64)
		if err != nil || n < 0 {
			return 0 // cutime and cstime are signed, but never below 0
		}
		return uint64(n)
	}
	p.parent = int(number(4))
	p.kernel = pid == 2 || p.parent == 2 || number(9)&pfKThread != 0
	p.used = number(14) + number(15)
	p.reaped = number(16) + number(17)
	p.start = number(22)
	return p, true
}

// A census is all processes at one moment, by number.
type census map[int]process

// same returns the process as it is in c, if it still, or already, lives there.
func (c census) same(p process) (process, bool) {
	q, ok := c[p.pid]
	return q, ok && q.start == p.start
}

// descends says whether a process is one of the roots or comes from one. seen remembers the answers.
func (c census) descends(pid int, roots map[int]bool, seen map[int]bool) bool {
	if roots[pid] {
		return true
	}
	if answer, ok := seen[pid]; ok {
		return answer
	}
	p, ok := c[pid]
	if !ok || p.parent == pid {
		return false
	}
	seen[pid] = false // a list that was read while processes came and went may hold a ring
	seen[pid] = c.descends(p.parent, roots, seen)
	return seen[pid]
}

// outside returns the ticks that processes used between two censuses, without the roots, their descendants and kernel
// threads. A process that comes from a root in either census is one's own: its parent may have ended in between.
//
// What a process used that began and ended in between is known if its parent waited for it and lives on: the parent's
// account of ended children grew by it. It also grew by those that lived before, with all they had used by then, which is
// taken off again.
func outside(before, after census, roots map[int]bool) uint64 {
	seenBefore, seenAfter := map[int]bool{}, map[int]bool{}
	known := map[int]uint64{} // by process: what its ended children had used before
	for _, p := range before {
		if _, lives := after.same(p); lives {
			continue
		}
		if heir, ok := survivor(p, before, after); ok {
			known[heir] += p.used + p.reaped
		}
	}
	var sum uint64
	for pid, p := range after {
		if p.kernel || after.descends(pid, roots, seenAfter) {
			continue
		}
		old, lived := before.same(p)
		if lived && before.descends(pid, roots, seenBefore) {
			continue
		}
		if !lived { // its children did not live before it
			sum += p.used + p.reaped
			continue
		}
		sum += sub(p.used, old.used) + sub(p.reaped, old.reaped+known[pid])
	}
	return sum
}

// survivor is the nearest ancestor of an ended process that still lives.
func survivor(p process, before, after census) (pid int, ok bool) {
	for range len(before) {
		if p, ok = before[p.parent]; !ok {
			return 0, false
		}
		if _, lives := after.same(p); lives {
			return p.pid, true
		}
	}
	return 0, false
}

// sub is a-b, or 0: the kernel's sums may go back by a tick.
func sub(a, b uint64) uint64 { return a - min(a, b) }
