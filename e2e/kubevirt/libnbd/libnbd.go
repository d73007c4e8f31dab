// Package libnbd stands in for the binding of libnbd, which is no module that Go can get. KubeVirt reads changed blocks
// with it, for incremental backups, and for nothing else: here each of them fails at its beginning.
package libnbd

import "errors"

var errNotBuiltIn = errors.New("this virt-launcher is built without libnbd")

// As nbd's protocol and QEMU name them.
const (
	CONTEXT_BASE_ALLOCATION   = "base:allocation"
	CONTEXT_QEMU_DIRTY_BITMAP = "qemu:dirty-bitmap:"

	STATE_HOLE  = 1
	STATE_ZERO  = 2
	STATE_DIRTY = 1
)

// Libnbd is a connection that never is.
type Libnbd struct{}

// LibnbdExtent is a run of blocks in one state.
type LibnbdExtent struct {
	Length uint64
	Flags  uint64
}

// PreadOptargs are the options of Pread.
type PreadOptargs struct{}

// BlockStatus64Optargs are the options of BlockStatus64.
type BlockStatus64Optargs struct{}

// Create fails.
func Create() (*Libnbd, error) { return nil, errNotBuiltIn }

// Close has nothing to close.
func (*Libnbd) Close() error { return nil }

// AddMetaContext fails.
func (*Libnbd) AddMetaContext(string) error { return errNotBuiltIn }

// CanMetaContext fails.
func (*Libnbd) CanMetaContext(string) (bool, error) { return false, errNotBuiltIn }

// SetExportName fails.
func (*Libnbd) SetExportName(string) error { return errNotBuiltIn }

// ConnectUnix fails.
func (*Libnbd) ConnectUnix(string) error { return errNotBuiltIn }

// GetSize fails.
func (*Libnbd) GetSize() (uint64, error) { return 0, errNotBuiltIn }

// Pread fails.
func (*Libnbd) Pread([]byte, uint64, *PreadOptargs) error { return errNotBuiltIn }

// BlockStatus64 fails.
func (*Libnbd) BlockStatus64(uint64, uint64, func(string, uint64, []LibnbdExtent, *int) int, *BlockStatus64Optargs) error {
	return errNotBuiltIn
}
