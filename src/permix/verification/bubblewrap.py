"""Start a process in a sandbox made by bubblewrap (`bwrap`), with a filter of system calls.

The sandbox contains Python's standard library, the system's shared libraries and `permix.verification.guest`, all read-only;
`/dev/null` and `/dev/urandom`; and a scratch folder, `/tmp`, in memory and of bounded size. It has no network (only its own
loopback device), no process of the host, no `/proc`, no home folder, none of our environment variables, and no open file but the
channel to us. Its user has no privileges, cannot gain any, and cannot make namespaces. `guest/limits.py` adds resource limits.
All processes of the sandbox end with the process that started it.

The kernel does not limit the number of root's processes. If root starts the sandbox, an outer sandbox first becomes the user
nobody, and passes on the files that only root may read. Root and ordinary users get the same sandbox.

The filter is a BPF program for `bwrap --seccomp`. It denies (EPERM) system calls that allocate memory which no limit counts, that
read other processes, or that reach large parts of the kernel which no exercise needs. Namespaces and resource limits bound all
other calls.
"""

import json
import os
import platform
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from permix.errors import ConfigError

_X32_SYSCALL_BIT = 0x40000000  # the x86-64 kernel offers its calls a second time from this number on

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_DENIED_SYSCALLS = {
    "shmget": (29, 194), "memfd_create": (319, 279), "memfd_secret": (447, 447), "msgget": (68, 186), "semget": (64, 190),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "userfaultfd": (323, 282),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "unshare": (272, 97), "setns": (308, 268),
}  # fmt: skip
"""Numbers of the denied calls on x86-64 and on arm64, from the kernel's tables."""


_BPF_LOAD, _BPF_JUMP_EQUAL, _BPF_JUMP_AT_LEAST, _BPF_RETURN = 0x20, 0x15, 0x35, 0x06

_SECCOMP_ALLOW, _SECCOMP_EPERM = 0x7FFF0000, 0x00050001

_SYSCALL_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4  # in struct seccomp_data


def build_seccomp_filter(architecture: str | None = None) -> bytes:
    """The BPF program for this machine's architecture. Raises ConfigError for an architecture without known call numbers."""
    architecture = architecture or platform.machine()
    if architecture not in _AUDIT_ARCH:
        raise ConfigError(f"the sandbox for programs runs on {' and '.join(_AUDIT_ARCH)}, not on {architecture}")
    denied = [numbers[list(_AUDIT_ARCH).index(architecture)] for numbers in _DENIED_SYSCALLS.values()]
    # A jump counts the lines to skip: each test jumps over the remaining tests to one of the two returns at the end.
    deny = len(denied) + 1
    lines = [
        (_BPF_LOAD, 0, 0, _ARCH_OFFSET),
        (_BPF_JUMP_EQUAL, 0, deny + 2, _AUDIT_ARCH[architecture]),
        (_BPF_LOAD, 0, 0, _SYSCALL_NUMBER_OFFSET),
    ]
    lines += [(_BPF_JUMP_AT_LEAST, deny, 0, _X32_SYSCALL_BIT)]
    lines += [(_BPF_JUMP_EQUAL, deny - 1 - place, 0, number) for place, number in enumerate(denied)]
    lines += [(_BPF_RETURN, 0, 0, _SECCOMP_ALLOW), (_BPF_RETURN, 0, 0, _SECCOMP_EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


NOBODY_ID = "65534"

SYSTEM_PATHS = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/etc/ld.so.cache")

DEVICE_PATHS = ("/dev/null", "/dev/urandom")

SANDBOX_PYTHON, SANDBOX_GUEST_FOLDER = "/python", "/box/permix/verification/guest"

BUBBLEWRAP_INSTALL_HINT = (
    "programs run in bubblewrap 0.8 or newer (Debian: apt install bubblewrap), on Linux 5.14 or newer, and users must be allowed "
    "to make namespaces: set the kernel setting kernel.unprivileged_userns_clone to 1 if it exists, on Ubuntu also "
    "kernel.apparmor_restrict_unprivileged_userns to 0, and start a container so that it allows namespaces"
)


class SandboxLimits(NamedTuple):
    """Resources that one program may use.

    cpu_seconds, wall_seconds: time for one test.
    memory_bytes: address space of each process.
    processes: number of processes and threads at the same time.
    output_bytes: size of the output of one test, and of each file.
    scratch_bytes: size of /tmp.
    """

    cpu_seconds: int = 6
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    processes: int = 8
    output_bytes: int = 8 << 20
    scratch_bytes: int = 64 << 20


def start_sandbox(script: str, limits: SandboxLimits, channel_fd: int) -> "subprocess.Popen[bytes]":
    """Start `script`, a file of `permix.verification.guest`, in a sandbox. Its stdin is the socket `channel_fd`.

    stderr of the process has bubblewrap's error messages. Raises ConfigError if bubblewrap is missing, and OSError if no process
    can be started.
    """
    denied = build_seccomp_filter()
    read, write = os.pipe()
    with open(read, "rb"):
        with open(write, "wb") as pipe:
            pipe.write(denied)
        return subprocess.Popen(
            bwrap_command(script, limits, read),
            stdin=channel_fd,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[read],
            env={},
            start_new_session=True,  # so that Ctrl-C reaches only the parent
        )


def bwrap_command(script: str, limits: SandboxLimits, filter_fd: int) -> list[str]:
    """The complete command line: bubblewrap, its options, and Python with the script and the limits as JSON."""
    python = [
        f"{SANDBOX_PYTHON}/bin/python",
        "-P",
        "-s",
        "-S",
        "-B",
        "-X",
        "utf8",
        f"{SANDBOX_GUEST_FOLDER}/{script}",
        json.dumps(limits._asdict()),
    ]
    if os.getuid() != 0:
        return [*_sandbox_command(_guest_mounts(), limits, filter_fd), *python]
    passed_on = [(path, path) for path in (SANDBOX_PYTHON, SANDBOX_GUEST_FOLDER)]
    return [*_nobody_command(), *_sandbox_command(passed_on, limits, filter_fd), *python]


def _sandbox_command(mounts: Sequence[tuple[str, str]], limits: SandboxLimits, filter_fd: int) -> list[str]:
    return [
        _bwrap_path(),
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        "--unshare-cgroup-try",
        "--disable-userns",
        "--new-session",
        "--die-with-parent",
        "--uid",
        NOBODY_ID,
        "--gid",
        NOBODY_ID,
        "--hostname",
        "sandbox",
        *_environment_flags(),
        *_read_only_flags(mounts),
        *_device_flags(),
        "--size",
        str(limits.scratch_bytes),
        "--tmpfs",
        "/tmp",
        "--chdir",
        "/tmp",
        "--remount-ro",
        "/",
        "--seccomp",
        str(filter_fd),
        "--",
    ]


def _nobody_command() -> list[str]:
    """The outer sandbox for root. Its folders are readable for all users; bubblewrap's default makes them root's only."""
    files = [*_guest_mounts(), *((path, path) for path in (_bwrap_path(), _find_tool("setpriv")))]
    shown = [*(inside for _, inside in files), *SYSTEM_PATHS, *DEVICE_PATHS]
    folders = sorted({str(parent) for path in shown for parent in Path(path).parents} - {"/"})
    return [
        _bwrap_path(),
        "--unshare-pid",
        "--die-with-parent",
        "--cap-drop",
        "ALL",
        "--cap-add",
        "CAP_SETUID",
        "--cap-add",
        "CAP_SETGID",
        *(word for folder in (*folders, "/tmp") for word in ("--perms", "0755", "--dir", folder)),
        *_read_only_flags(files),
        *_device_flags(),
        "--proc",
        "/proc",
        "--",
        _find_tool("setpriv"),
        "--reuid",
        NOBODY_ID,
        "--regid",
        NOBODY_ID,
        "--clear-groups",
        "--",
    ]


def _guest_mounts() -> list[tuple[str, str]]:
    """(path outside, path inside) of the files in the sandbox. The path of Python inside reveals nothing about this machine."""
    base = Path(sys.base_prefix)
    executable = base / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    guest = Path(__file__).parent / "guest"
    return [
        (str(base / "lib"), f"{SANDBOX_PYTHON}/lib"),
        (str(executable.resolve()), f"{SANDBOX_PYTHON}/bin/python"),
        (str(guest), SANDBOX_GUEST_FOLDER),
    ]


def _read_only_flags(mounts: Sequence[tuple[str, str]]) -> Iterator[str]:
    for path in SYSTEM_PATHS:
        yield from ("--ro-bind-try", path, path)
    for outside, inside in mounts:
        yield from ("--ro-bind", outside, inside)


def _device_flags() -> Iterator[str]:
    for path in DEVICE_PATHS:
        yield from ("--dev-bind", path, path)


def _environment_flags() -> Iterator[str]:
    # A fixed hash seed: sets print in the same order every time, so a program always gets the same verdict.
    variables = {"HOME": "/tmp", "PYTHONHOME": SANDBOX_PYTHON, "PYTHONPATH": "/box", "PYTHONHASHSEED": "0"}
    yield "--clearenv"
    for name, value in {**variables, "LD_LIBRARY_PATH": f"{SANDBOX_PYTHON}/lib"}.items():
        yield from ("--setenv", name, value)


def _bwrap_path() -> str:
    return _find_tool("bwrap")


def _find_tool(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise ConfigError(f"{tool} is not installed: {BUBBLEWRAP_INSTALL_HINT}")
    return path
