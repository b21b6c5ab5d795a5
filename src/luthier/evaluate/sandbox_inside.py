"""The inside of the sandbox: give up rights, then run the program. A script of its own, which imports nothing of Luthier's.

Linux only: a seccomp filter (no sockets, no further processes, no signals, no changes of rights), Landlock (writing below one folder only),
namespaces (no network devices, no rights of root). Everywhere: limits on time, memory, files. What the kernel does not offer is left out,
and is not among what is reported as kept.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable
from typing import Any

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
CLONE_NEWUSER, CLONE_NEWNET, CLONE_NEWIPC, CLONE_THREAD = 0x10000000, 0x40000000, 0x08000000, 0x00010000
EPERM, ENOSYS = 1, 38

# System calls by number (asm/unistd_64.h of x86, asm-generic/unistd.h), each answered with "not permitted".
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "x86_64": {
        "audit": 0xC000003E,
        "clone": 56,
        "clone3": 435,
        "prlimit": 302,
        "network": [41, 53, 425],  # socket, socketpair, io_uring_setup
        # fork, vfork, exec*, kill and its kin, ptrace, process_vm_writev; setpriority, sched_set*, ioprio_set, which reach other processes
        "processes": [57, 58, 59, 322, 62, 200, 234, 129, 297, 424, 101, 311, 141, 142, 144, 203, 251, 314],
        "rights": [90, 91, 268, 452, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199, 132, 235, 261, 280],  # chmod*, chown*, *xattr, utime*
        "root": [165, 166, 155, 161, 272, 308, 304, 250, 321, 323, 298, 169, 246, 175, 313, 167, 168, 170, 164, 227, 159],  # what root may do
    },
    "aarch64": {
        "audit": 0xC00000B7,
        "clone": 220,
        "clone3": 435,
        "prlimit": 261,
        "network": [198, 199, 425],
        "processes": [221, 281, 129, 130, 131, 138, 240, 424, 117, 271, 140, 118, 119, 122, 30, 274],
        "rights": [52, 53, 452, 54, 55, 5, 6, 7, 14, 15, 16, 88],
        "root": [40, 39, 41, 51, 97, 268, 265, 219, 280, 282, 241, 142, 104, 105, 273, 224, 225, 161, 170, 112, 171],
    },
}
# Landlock's rights to write, by the version of its interface that has them (linux/landlock.h).
WRITING = {1: 0b1111111110010, 2: 1 << 13, 3: 1 << 14}
CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446


def main() -> None:
    """Read the request, give up rights, run the program, and report on the descriptor that was handed over."""
    asked = json.loads(sys.stdin.buffer.read())
    with open(asked["program"], encoding="utf-8") as file:
        source = file.read()
    kept = give_up(asked["work"], asked["seconds"], asked["memory_bytes"], asked["file_bytes"])
    _report(asked["report"], {"kept": kept})
    try:
        exec(compile(source, "answer", "exec"), {"__name__": "__main__"})
    except BaseException as error:
        _report(asked["report"], {"passed": "", "how": f"{type(error).__name__}: {error}"[:200]})
    else:
        _report(asked["report"], {"passed": asked["word"], "how": ""})
    os._exit(0)


def _report(descriptor: int, found: dict[str, Any]) -> None:
    os.write(descriptor, (json.dumps(found) + "\n").encode())


def give_up(work: str, seconds: int, memory_bytes: int, file_bytes: int) -> list[str]:
    """Give up all rights but to compute and to write below `work`. Gives what was given up for certain."""
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    kept = []
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC)  # where it is allowed: what follows does not need it
        libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if _only_write_below(libc, work):
            kept.append("files")
        if _filter_calls(libc):
            kept += ["network", "processes"]
    if "processes" not in kept:
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))  # of this user, all counted: no more can be begun
    return kept


def _only_write_below(libc: Any, folder: str) -> bool:
    """Landlock: writing, making and removing is allowed below `folder` alone."""
    version = libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if version < 3:  # before that, files elsewhere can still be cut
        return False
    rights = sum(bits for since, bits in WRITING.items() if version >= since)
    handled = struct.pack("=Q", rights)
    ruleset = libc.syscall(CREATE_RULESET, handled, ctypes.c_size_t(len(handled)), 0)
    below = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    rule = struct.pack("=Qi", rights, below)
    done = ruleset >= 0 and libc.syscall(ADD_RULE, ruleset, 1, rule, 0) == 0 and libc.syscall(RESTRICT_SELF, ruleset, 0) == 0
    os.close(below)
    return bool(done)


def _filter_calls(libc: Any) -> bool:
    """Seccomp: the calls in ARCHITECTURES fail, and so does every way to a further process; threads are allowed."""
    known = ARCHITECTURES.get(platform.machine())
    if known is None:
        return False
    program = b"".join(_instructions(known))
    kept = ctypes.create_string_buffer(program, len(program))
    described = struct.pack("@HP", len(program) // 8, ctypes.addressof(kept))
    return bool(libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, described, 0, 0) == 0)


def _instructions(known: dict[str, Any]) -> Iterable[bytes]:
    """The filter in classic BPF: struct sock_filter {code, jt, jf, k} each."""

    def one(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("=HBBI", code, if_true, if_false, value)

    load, equal, above, has, give = 0x20, 0x15, 0x35, 0x45, 0x06
    allow, kill = one(give, 0x7FFF0000), one(give, 0x80000000)
    refuse, unknown = one(give, 0x00050000 | EPERM), one(give, 0x00050000 | ENOSYS)
    yield from (one(load, 4), one(equal, known["audit"], 1, 0), kill)  # struct seccomp_data: nr, arch, ip, args[6]
    yield from (one(load, 0), one(above, 0x40000000, 0, 1), kill)  # the x32 calls have numbers of their own
    for number in (*known["network"], *known["processes"], *known["rights"], *known["root"]):
        yield from (one(equal, number, 0, 1), refuse)
    yield from (one(equal, known["clone3"], 0, 1), unknown)  # its flags cannot be read here; libraries then take clone
    yield from (one(equal, known["clone"], 0, 4), one(load, 16), one(has, CLONE_THREAD, 1, 0), refuse, allow)
    # Its own limits, which the C library reads so; its first argument names another process otherwise.
    yield from (one(equal, known["prlimit"], 0, 4), one(load, 16), one(equal, 0, 1, 0), refuse, allow)
    yield allow


if __name__ == "__main__":
    main()
