#!/usr/bin/env python3
"""Patches a fault of QEMU's emulated SVM in a copy of its program. See README.md, "Interrupts that came twice".

Usage: patch-qemu.py PROGRAM

In accel/tcg/cpu-exec.c, cpu_handle_interrupt() ends a turn of the emulation by

    if (cpu->exception_index == -1) cpu->exception_index = EXCP_INTERRUPT;

At this place the index is -1, unless the turn began with a VMRUN that injected an interrupt: helper_vmrun() in
target/i386/tcg/system/svm_helper.c delivers that by itself and leaves its number behind, so that it is delivered once more
here, whatever the guest is doing. Without the condition it is not.
"""

import pathlib
import re
import sys

# mov exception_index(%r), %r'; cmp $-1, %r'; jne elsewhere; movl $EXCP_INTERRUPT, exception_index(%r)
CONDITION = re.compile(
    rb"\x8b[\x80-\xbf](?P<at>.{4})\x83[\xf8-\xff]\xff(?P<jne>\x0f\x85.{4}|\x75.)\xc7[\x80-\x87](?P=at)\x00\x00\x01\x00",
    re.DOTALL,
)
NOP = {2: b"\x66\x90", 6: b"\x66\x0f\x1f\x44\x00\x00"}

program = pathlib.Path(sys.argv[1])
code = program.read_bytes()
found = list(CONDITION.finditer(code))
if len(found) != 1:
    sys.exit(f"{program}: {len(found)} places look like the one to patch; nothing is changed")
start, end = found[0].span("jne")
program.write_bytes(code[:start] + NOP[end - start] + code[end:])
