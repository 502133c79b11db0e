"""The sandbox: bubblewrap's command line, and whether it works on this machine.

Inside there is Python's standard library, the system's shared libraries and `permix.verification.guest`, all read-only;
`/dev/null`
and `/dev/urandom`; and one scratch folder, `/tmp`, in memory and of bounded size. There is no network (the loopback device in
there is its own), no process of the host, no `/proc`, no home, none of our environment variables, and no file descriptor but the
channel. The user has no rights, cannot gain any, and can make no namespaces. `seccomp.py` denies some system calls, and
`guest/limits.py` adds the limits of a process. Everything in there ends with the process that started it.

The kernel bounds no number of root's processes. So where root starts it, an outer sandbox first becomes the user nobody, and
hands on the files that root alone may read. What root and an ordinary user get is the same.

A filter of system calls, as the BPF program that `bwrap --seccomp` reads.

Denied (EPERM) is what would hold memory that no limit of a process counts, what reads into other processes, and large parts of
the kernel that no program of an exercise needs. Everything else is bounded by namespaces and resource limits.
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

_X32_SYSCALL_BIT = 0x40000000  # from here on the x86-64 kernel has its calls a second time

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}

_DENIED_SYSCALLS = {
    "shmget": (29, 194), "memfd_create": (319, 279), "memfd_secret": (447, 447), "msgget": (68, 186), "semget": (64, 190),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "bpf": (321, 280), "userfaultfd": (323, 282),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "unshare": (272, 97), "setns": (308, 268),
}  # fmt: skip
"""Numbers on x86-64 and on arm64, from the kernel's own tables."""


_BPF_LOAD, _BPF_JUMP_EQUAL, _BPF_JUMP_AT_LEAST, _BPF_RETURN = 0x20, 0x15, 0x35, 0x06

_SECCOMP_ALLOW, _SECCOMP_EPERM = 0x7FFF0000, 0x00050001

_SYSCALL_NUMBER_OFFSET, _ARCH_OFFSET = 0, 4  # in struct seccomp_data


def build_seccomp_filter(architecture: str | None = None) -> bytes:
    """The filter for this machine. Raises ConfigError for one whose calls are not known here."""
    architecture = architecture or platform.machine()
    if architecture not in _AUDIT_ARCH:
        raise ConfigError(f"programs are run on {' and '.join(_AUDIT_ARCH)}, not on {architecture}")
    denied = [numbers[list(_AUDIT_ARCH).index(architecture)] for numbers in _DENIED_SYSCALLS.values()]
    # Each test jumps over what is left of the tests, to one of the two returns at the end.
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
    "programs are run by bubblewrap, 0.8 or newer (Debian: apt install bubblewrap), on Linux 5.14 or newer where a user may make "
    "namespaces: set the kernel's kernel.unprivileged_userns_clone to 1 where there is such a setting, on Ubuntu also "
    "kernel.apparmor_restrict_unprivileged_userns to 0, and start a container so that it allows them"
)


class SandboxLimits(NamedTuple):
    """What one program may use. `cpu_seconds` and `wall_seconds`: for one test; `memory_bytes`: of each of its processes.

    `processes`: at a time, threads included. `output_bytes`: of one test, and of any one file.
    """

    cpu_seconds: int = 6
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    processes: int = 8
    output_bytes: int = 8 << 20
    scratch_bytes: int = 64 << 20


def start_sandbox(script: str, limits: SandboxLimits, channel_fd: int) -> "subprocess.Popen[bytes]":
    """`script` of `permix.verification.guest`, with `stdin` as its channel; bubblewrap's complaints are on stderr.

    Raises ConfigError where there is no bubblewrap, OSError where no process can be started.
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
            start_new_session=True,  # Ctrl-C is for the parent
        )


def bwrap_command(script: str, limits: SandboxLimits, filter_fd: int) -> list[str]:
    """The whole command line."""
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
    handed_on = [(path, path) for path in (SANDBOX_PYTHON, SANDBOX_GUEST_FOLDER)]
    return [*_nobody_command(), *_sandbox_command(handed_on, limits, filter_fd), *python]


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
    """Root's outer sandbox. Its folders are open to all, where bubblewrap would make them its own alone."""
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
    """What is shown, and where: Python under a name that tells nothing of this machine."""
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
    # A hash seed, so that sets are printed in the same order every time: the same program gets the same verdict.
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
