package cpu

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const hugePage = 2 << 20

// preferHugePages asks for huge pages where b lies, before it is touched: a step walks through all weights, and with pages of 4 KiB the
// translations alone take a share of it. The range is widened to whole huge pages, which its neighbours on the heap then share. It is advice:
// a kernel that does not take it changes nothing.
func preferHugePages(b []byte) {
	if len(b) < hugePage/4 {
		return
	}
	from := uintptr(unsafe.Pointer(unsafe.SliceData(b))) &^ (hugePage - 1)
	to := (uintptr(unsafe.Pointer(unsafe.SliceData(b))) + uintptr(len(b)) + hugePage - 1) &^ (hugePage - 1)
	_, _, _ = unix.Syscall(unix.SYS_MADVISE, from, to-from, unix.MADV_HUGEPAGE)
}
