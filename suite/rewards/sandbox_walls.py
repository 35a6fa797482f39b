"""What the kernel takes away from a process before it runs a model's program: memory, network, processes, files.

Standard library only: `sandbox_child` imports this without the suite. A wall that the kernel does not have is left out
and reported as missing; none raises. Run as a script it puts the walls up around itself and prints which stand.

https://docs.kernel.org/userspace-api/seccomp_filter.html and https://docs.kernel.org/userspace-api/landlock.html
"""

import ctypes
import errno
import os
import resource
import struct
import sys

FILE_BYTES = 16 << 20
OPEN_FILES = 64
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column in the tables below, AUDIT_ARCH_*
_ALLOW, _KILL, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _HAS_BITS, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ARGUMENT = 16  # offset of the first argument in struct seccomp_data; 8 bytes each, the low half first
_CLONE_THREAD = 0x10000

# System calls that are refused outright: name -> number on x86_64, on aarch64 (None: that machine has it not).
_REFUSED = {
    # new processes and new programs
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    # network
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202),
    "accept4": (288, 242), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    # other processes: looking into them, signalling them, leaving the group that the parent kills
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424), "tkill": (200, 130), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "setsid": (112, 157), "setpgid": (109, 154), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # what outlives the process, or is no part of its address space; to use what another has made takes no *get, only
    # its number, which can be guessed
    "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190), "shmctl": (31, 195), "msgctl": (71, 187),
    "semctl": (66, 191), "shmat": (30, 196), "semop": (65, 193), "semtimedop": (220, 192), "msgsnd": (69, 189),
    "msgrcv": (70, 188), "mq_open": (240, 180), "mq_unlink": (241, 181), "memfd_create": (319, 279),
    "memfd_secret": (447, 447), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # the kernel's own doors
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "open_by_handle_at": (304, 265),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    # owners, modes, times and attributes of files, which Landlock leaves alone
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "setxattrat": (463, 463), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "removexattrat": (466, 466), "file_setattr": (469, 469), "utime": (132, None),
    "utimes": (235, None), "futimesat": (261, None), "utimensat": (280, 88),
}  # fmt: skip
# Allowed where the argument at that place is this process (0 means oneself, but to kill() it means the whole group).
_ON_ITSELF = {"kill": (62, 129), "tgkill": (234, 131)}
_ON_ITSELF_OR_0 = {
    "prlimit64": (302, 261), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274),
}  # fmt: skip
# Refused with these values: living on without the parent; a signal to another process through a file's owner.
_NEVER_WITH = {
    "prctl": ((157, 167), 0, (PR_SET_PDEATHSIG,)),
    "fcntl": ((72, 25), 1, (8, 15)),  # F_SETOWN, F_SETOWN_EX
    "ioctl": ((16, 29), 1, (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP
}
_CLONE, _CLONE3, _SOCKETPAIR = (56, 220), (435, 435), (53, 199)


def put_up(home: str, memory_bytes: int, cpu_seconds: int) -> dict[str, bool]:
    """Take from this process what a model's program must not have; -> which walls stand. There is no way back.

    "memory": the limit on the address space. "seccomp": no network, no new processes, no signals to others.
    "landlock": nothing is written, emptied or removed outside the directory `home`.
    """
    stands = {"memory": _limit(memory_bytes, cpu_seconds), "seccomp": False, "landlock": False}
    if sys.platform == "linux" and prctl(PR_SET_NO_NEW_PRIVS, 1):
        _drop_capabilities()
        stands["landlock"] = _landlock(home)
        stands["seccomp"] = _seccomp()
    if not stands["seccomp"]:
        # Second best: the count is of the user's processes everywhere, and on Linux of threads, too; root is exempt.
        _lower(resource.RLIMIT_NPROC, 0)
    return stands


def prctl(option: int, value: int, pointer: int = 0) -> bool:
    """Whether the kernel did it. Linux only."""
    arguments = [ctypes.c_ulong(number) for number in (value, pointer, 0, 0)]
    return ctypes.CDLL(None).prctl(option, *arguments) == 0


def _limit(memory_bytes: int, cpu_seconds: int) -> bool:
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, FILE_BYTES)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
    _lower(resource.RLIMIT_CPU, cpu_seconds)
    return _lower(resource.RLIMIT_AS, memory_bytes)


def _lower(what: int, limit: int) -> bool:
    hard = resource.getrlimit(what)[1]
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    try:
        resource.setrlimit(what, (limit, limit))
    except (OSError, ValueError):  # macOS has no limit on the address space
        return False
    return True


def _drop_capabilities() -> None:
    """Root keeps the right to read and nothing else: a Python in somebody's closed home must still find its modules.

    Without this, root could raise the limits again, and look into the trainer's memory and environment.
    """
    libc = ctypes.CDLL(None)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    held = ctypes.create_string_buffer(24)
    if libc.capget(header, held) == 0:
        kept = struct.unpack("=6I", held.raw)[1] & 1 << 2  # CAP_DAC_READ_SEARCH
        libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", kept, kept, 0, 0, 0, 0)))


def _syscall(number: int, *arguments: int) -> int:
    return ctypes.CDLL(None).syscall(ctypes.c_long(number), *(ctypes.c_long(argument) for argument in arguments))


def _landlock(home: str) -> bool:
    version = _syscall(444, 0, 0, 1)  # landlock_create_ruleset; the three numbers are the same on every machine
    if version < 1:
        return False
    write_file, newer = 1 << 1, ((2, 13), (3, 14), (5, 15))  # since version 2: refer, 3: truncate, 5: ioctl on devices
    rights = write_file | 0b1111_1111_1 << 4 | sum(1 << bit for since, bit in newer if version >= since)
    # Also no TCP (since version 4) and no signals or abstract sockets to the world outside (6): a second lock behind
    # seccomp's. The kernel takes the fields that it knows.
    attributes = struct.pack("=QQQ", rights, 3, 3)[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall(444, _address(attributes), len(attributes), 0)
    if ruleset < 0:
        return False
    for path, allowed in ((home, rights), ("/dev/null", write_file)):
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        _syscall(445, ruleset, 1, _address(struct.pack("=Qi", allowed, opened)), 0)
        os.close(opened)
    stands = _syscall(446, ruleset, 0) == 0
    os.close(ruleset)
    return stands and version >= 3  # before that, a file outside could still be emptied


def _seccomp() -> bool:
    column, architecture = MACHINES.get(os.uname().machine, (None, None))
    if column is None or sys.maxsize < 1 << 32:
        return False
    packed = [struct.pack("=HBBI", *rule) for rule in rules(column, architecture, os.getpid())]
    program = struct.pack("@HP", len(packed), _address(b"".join(packed)))
    return prctl(PR_SET_SECCOMP, 2, _address(program))


_kept_alive = []  # the kernel reads these buffers by address, behind Python's back


def _address(data: bytes) -> int:
    _kept_alive.append(ctypes.create_string_buffer(data, len(data)))
    return ctypes.addressof(_kept_alive[-1])


def rules(column: int, architecture: int, own_pid: int) -> list[tuple[int, int, int, int]]:
    """The filter in BPF, for the machine of that column: (code, how many to skip if true, if false, value)."""
    filtered = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    if column == 0:  # the x32 calls carry this bit and would slip past every number below
        filtered += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _ENOSYS)]
    # clone3 keeps its flags in memory, where a filter cannot look; told that there is none, libc takes clone.
    filtered += [(_EQUAL, 0, 1, _CLONE3[column]), (_RETURN, 0, 0, _ENOSYS)]
    for numbers in _REFUSED.values():
        if numbers[column] is not None:
            filtered += [(_EQUAL, 0, 1, numbers[column]), (_RETURN, 0, 0, _EPERM)]
    for numbers in _ON_ITSELF.values():
        filtered += _when(numbers[column], 0, (own_pid,), _ALLOW, _EPERM)
    for numbers in _ON_ITSELF_OR_0.values():
        filtered += _when(numbers[column], 0, (0, own_pid), _ALLOW, _EPERM)
    for numbers, place, values in _NEVER_WITH.values():
        filtered += _when(numbers[column], place, values, _EPERM, _ALLOW)
    filtered += [  # threads are clones, too, and stay allowed
        (_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _ARGUMENT),
        (_HAS_BITS, 1, 0, _CLONE_THREAD),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    filtered += [  # asyncio wakes itself through a pair of AF_UNIX streams, which reach nobody else
        (_EQUAL, 0, 7, _SOCKETPAIR[column]),
        (_LOAD, 0, 0, _ARGUMENT),
        (_EQUAL, 0, 3, 1),
        (_LOAD, 0, 0, _ARGUMENT + 8),
        (_AND, 0, 0, 0xF),
        (_EQUAL, 1, 0, 1),
        (_RETURN, 0, 0, _EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return [*filtered, (_RETURN, 0, 0, _ALLOW)]


def _when(number: int, place: int, values: tuple[int, ...], then: int, otherwise: int) -> list:
    """Rules for one system call: `then` if the argument at `place` is one of `values`, else `otherwise`."""
    count = len(values)
    return [
        (_EQUAL, 0, count + 3, number),
        (_LOAD, 0, 0, _ARGUMENT + 8 * place),
        *((_EQUAL, count - index, 0, value) for index, value in enumerate(values)),
        (_RETURN, 0, 0, otherwise),
        (_RETURN, 0, 0, then),
    ]


if __name__ == "__main__":
    print(*(name for name, stands in put_up(os.getcwd(), 512 << 20, 5).items() if stands))
