#!/usr/bin/env python3
"""Patches two faults of QEMU's emulated SVM in a copy of its program. See README.md, "Interrupts that came twice" and "A node that
panics in `__svm_vcpu_run`".

Usage: patch-qemu.py PROGRAM

Each patch is made only where exactly one place looks like it; one that is not made is named, and the status is 1.
"""

import pathlib
import re
import sys

NOP = {2: b"\x66\x90", 6: b"\x66\x0f\x1f\x44\x00\x00", 10: b"\x66\x2e\x0f\x1f\x84\x00\x00\x00\x00\x00"}

# Each has the bytes that become nothing in its group "gone".
FAULTS = {
    # In accel/tcg/cpu-exec.c, cpu_handle_interrupt() ends a turn of the emulation by
    #
    #     if (cpu->exception_index == -1) cpu->exception_index = EXCP_INTERRUPT;
    #
    # At this place the index is -1, unless the turn began with a VMRUN that injected an interrupt: helper_vmrun() in
    # target/i386/tcg/system/svm_helper.c delivers that by itself and leaves its number behind, so that it is delivered once more
    # here, whatever the guest is doing. Without the condition it is not.
    #
    # mov exception_index(%r), %r'; cmp $-1, %r'; jne elsewhere; movl $EXCP_INTERRUPT, exception_index(%r)
    "an injected interrupt is delivered twice": rb"\x8b[\x80-\xbf](?P<at>.{4})\x83[\xf8-\xff]\xff(?P<gone>\x0f\x85.{4}|\x75.)"
    rb"\xc7[\x80-\x87](?P=at)\x00\x00\x01\x00",
    # In target/i386/tcg/system/fpu_helper.c, cpu_clear_ignne() clears a flag of the first processor,
    #
    #     env->hflags2 &= ~HF2_IGNNE_MASK;
    #
    # and each processor calls it, in its own thread, whenever it restores its FPU's state (cpu_set_fpus()). What the first one has
    # written to hflags2 in that moment is lost: that its GIF is clear after a #VMEXIT, for example, or that its guest has nested
    # paging. The flag is only ever set by the port of an FPU of long ago (0xF0).
    #
    # call object_dynamic_cast_assert; andl $~HF2_IGNNE_MASK, hflags2(%rax); add $8, %rsp
    "flags of the first processor are lost": rb"\xe8.{4}(?P<gone>\x81\xa0.{4}\x7f\xff\xff\xff)\x48\x83\xc4\x08",
}

program = pathlib.Path(sys.argv[1])
code = program.read_bytes()
status = 0
for name, pattern in FAULTS.items():
    found = list(re.finditer(pattern, code, re.DOTALL))
    if len(found) != 1:
        print(f"{program}: not patched: {name}: {len(found)} places look like it", file=sys.stderr)
        status = 1
        continue
    start, end = found[0].span("gone")
    code = code[:start] + NOP[end - start] + code[end:]
program.write_bytes(code)
sys.exit(status)
