"""The sandbox's refusals, which need no sandbox: what is missing, what does not work, and what system calls are denied."""

import os
import struct
from pathlib import Path

import pytest

from permix import cli
from permix.errors import ConfigError
from permix.verification import bubblewrap
from permix.verification.sandbox import ProgramOutcome, Suite, require_sandbox, run_tests
from tests.sample_runs import stability_values, toml
from tests.sandboxed import TIGHT

NO_NAMESPACES = "bwrap: No permissions to create new namespace, likely because the kernel does not allow them"


def tools(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """These are the only programs that there are."""
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_without_bubblewrap_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"bwrap is not installed: .*apt install bubblewrap"):
        require_sandbox.__wrapped__()


def test_where_it_cannot_make_namespaces_it_says_what_it_said_and_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools(tmp_path, monkeypatch, bwrap=f"echo '{NO_NAMESPACES}' >&2; exit 1", setpriv="exit 1")
    with pytest.raises(ConfigError, match=r"did not start: bwrap: No permissions .*kernel\.unprivileged_userns_clone"):
        require_sandbox.__wrapped__()
    assert run_tests("print(1)", Suite(), TIGHT) == ProgramOutcome(None, f"the sandbox did not start: {NO_NAMESPACES}")


def test_a_run_is_refused_before_a_model_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    require_sandbox.cache_clear()
    task = {"name": "code", "path": str(tmp_path / "none.jsonl"), "n": 1}
    (tmp_path / "run.toml").write_text(toml(stability_values(tmp_path, "http://127.0.0.1:9/v1", task=task)))
    tools(tmp_path, monkeypatch)
    for verb in ("check", "stability"):
        assert cli.run_cli([verb, str(tmp_path / "run.toml")]) == 2
        assert "apt install bubblewrap" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def without_files(command: list[str]) -> list[str]:
    """The command line but for what it shows of the host's files."""
    words, kept = iter(command), []
    for word in words:
        if word == "--ro-bind":
            next(words), next(words)
        else:
            kept.append(word)
    return kept


def test_root_becomes_nobody_and_then_gets_what_everybody_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools(tmp_path, monkeypatch, bwrap="", setpriv="")
    commands = {}
    for uid in (0, 1000):
        monkeypatch.setattr(os, "getuid", lambda uid=uid: uid)
        commands[uid] = bubblewrap.bwrap_command("runner.py", TIGHT, 9)
    end = commands[0].index("--clear-groups") + 2
    assert commands[0][end - 6 : end] == ["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]
    assert without_files(commands[0][end:]) == without_files(commands[1000])
    assert "--disable-userns" in commands[1000]


@pytest.mark.parametrize(("machine", "arch"), [("x86_64", 0xC000003E), ("aarch64", 0xC00000B7)])
def test_the_filter_denies_what_is_listed_and_nothing_else(machine: str, arch: int) -> None:
    place = ["x86_64", "aarch64"].index(machine)
    denied = {numbers[place] for numbers in bubblewrap._DENIED_SYSCALLS.values()}
    allowed = [
        number
        for number in range(600)
        if run(bubblewrap.build_seccomp_filter(machine), number, arch) == bubblewrap._SECCOMP_ALLOW
    ]
    assert {*range(600)} - set(allowed) == denied
    assert run(bubblewrap.build_seccomp_filter(machine), 0x40000000, arch) == bubblewrap._SECCOMP_EPERM
    assert (
        run(bubblewrap.build_seccomp_filter(machine), allowed[0], 0x40000003) == bubblewrap._SECCOMP_EPERM
    )  # 32-bit x86 has other numbers


def run(filter: bytes, number: int, arch: int) -> int:
    """What a classic BPF program of loads, jumps and returns says of a system call."""
    lines = list(struct.iter_unpack("=HBBI", filter))
    at, loaded = 0, 0
    while True:
        code, if_true, if_false, value = lines[at]
        at += 1
        if code == 0x20:
            loaded = {0: number, 4: arch}[value]
        elif code == 0x06:
            return int(value)
        else:
            true = loaded == value if code == 0x15 else loaded >= value
            at += if_true if true else if_false


def test_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match="the sandbox for programs runs on x86_64 and aarch64, not on riscv64"):
        bubblewrap.build_seccomp_filter("riscv64")
