"""Programs run in the sandbox: right and wrong ones, and ones that try to get out, to take all there is, or to lie."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent, indent

import pytest

from permix.verification.sandbox import Case, ProgramOutcome, Suite, run_tests
from tests.sandboxed import TIGHT, needs_sandbox

pytestmark = needs_sandbox

ADD = Suite(cases=(Case("1 2\n", "3\n"), Case("20 30\n", "50\n")))
ADD_FUNCTION = Suite(function="add", cases=(Case('[[1, 2], {"dict": []}]', "3"), Case('[[20, 30], {"dict": []}]', "50")))
ADD_CHECK = Suite(
    function="add",
    check_code="def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(b=3, a=2) == 5\ncheck(add)",
)
RIGHT = "a, b = map(int, input().split())\nprint(a + b)"
DEEP = "import sys; sys.setrecursionlimit(10**6)\ndef deep(n): return 0 if n == 0 else 1 + deep(n - 1)\nprint(deep(50000))"


def printing(text: str) -> Suite:
    """Programs without input that print this."""
    return Suite(cases=(Case("", text),))


def reports(source: str, expected: object) -> ProgramOutcome:
    """What a function with this body, run in the sandbox, is judged when it should return `expected`."""
    program = f"def found():\n{indent(dedent(source), '    ')}"
    return run_tests(program, Suite(function="found", cases=(Case('[[], {"dict": []}]', json.dumps(expected)),)), TIGHT)


def running(mark: str) -> bool:
    """Whether a process of this machine has the mark in its command line."""
    for place in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if place.name.isdigit() and mark.encode() in (place / "cmdline").read_bytes():
                return True
    return False


# What is right and what is wrong


@pytest.mark.parametrize(
    ("program", "suite"),
    [
        (RIGHT, ADD),
        ("import sys\nfor line in sys.stdin: print(sum(map(int, line.split())))", ADD),
        ("import sys\nprint(eval(sys.stdin.buffer.read().replace(b' ', b'+')))\nsys.exit(1)", ADD),
        ("from threading import Thread\ndef f(): print(sum(map(int, open(0).read().split())))\nThread(target=f).start()", ADD),
        ("if __name__ == '__main__':\n    " + RIGHT.replace("\n", "\n    "), ADD),
        ("def add(a, b): return a + b\nif __name__ == '__main__': input('never asked')", ADD_FUNCTION),
        ("class Solution:\n    def add(self, a, b):\n        print('noise')\n        return a + b", ADD_FUNCTION),
        ("def add(a, b): return a + b", ADD_CHECK),
        ("print('gr\u00fcn \U0001f40d')", printing("gr\u00fcn \U0001f40d")),
        ("print(input())", Suite(cases=(Case("\u65e5\u672c", "\u65e5\u672c"),))),
        ("print(10 ** 4000)", printing("1" + "0" * 4000)),
        ("def power(): return 10 ** 6000", Suite(function="power", cases=(Case('[[], {"dict": []}]', "1" + "0" * 6000),))),
        (DEEP, printing("50000")),
        ("open('scratch', 'w').write('yes')\nprint(open('scratch').read())", printing("yes")),
    ],
)  # fmt: skip
def test_right_programs_are_right(program: str, suite: Suite) -> None:
    assert run_tests(program, suite, TIGHT) == ProgramOutcome(True)


@pytest.mark.parametrize(
    ("program", "suite", "reason"),
    [
        ("print(3)", ADD, "test 2 of 2: wrong result"),
        ("print(input())", ADD, "test 1 of 2: wrong result"),
        (f"{RIGHT}\nraise ValueError", ADD, "test 1 of 2: ended with status 1"),
        ("print(", ADD, "the program: raised SyntaxError"),
        ("\0", ADD, "the program: raised"),
        ("(" * 100_000, ADD, "the program: "),
        ("add = 3", ADD_FUNCTION, "test 1 of 2: raised TypeError"),
        ("def sub(a, b): return a - b", ADD_FUNCTION, "the program: raised KeyError"),
        ("def add(a, b): return 3", ADD_FUNCTION, "test 2 of 2: wrong result"),
        ("def add(a, b): return 3", ADD_CHECK, "the check: AssertionError"),
        ("def add(a, b): return None", ADD_CHECK, "the check: AssertionError"),
        ("def add(a, b): raise KeyError(a)", ADD_CHECK, "a call: raised KeyError"),
        ("def add(a, b): return add(a, b)", ADD_FUNCTION, "test 1 of 2: raised RecursionError"),
        ("import sys; sys.setrecursionlimit(10**9)\ndef f(n): return max([n], key=f)\nf(0)", printing(""), "test 1 of 1: "),
    ],
)  # fmt: skip
def test_wrong_programs_are_wrong_and_told_why(program: str, suite: Suite, reason: str) -> None:
    found = run_tests(program, suite, TIGHT)
    assert found.correct is False
    assert found.reason.startswith(reason)


def test_sets_are_printed_in_the_same_order_every_time() -> None:
    program = "print({*map(str, range(20))})"
    seeded = {"PYTHONHASHSEED": "0"}
    done = subprocess.run([sys.executable, "-c", program], env=seeded, capture_output=True, text=True, check=True)
    assert run_tests(program, printing(done.stdout), TIGHT).correct


def test_each_input_is_read_by_a_process_of_its_own() -> None:
    program = "seen = globals().setdefault('seen', [])\nseen.append(input())\nprint(len(seen))"
    assert run_tests(program, Suite(cases=(Case("a", "1"), Case("b", "1"))), TIGHT).correct


def test_an_input_may_be_longer_than_an_output() -> None:
    size = 2 * TIGHT.output_bytes
    assert run_tests("print(len(input()))", Suite(cases=(Case("x" * size, str(size)),)), TIGHT).correct


def test_a_check_that_cannot_be_run_is_no_score() -> None:
    for check, reason in (("import nothing", "ModuleNotFoundError"), ("x = 1", "it calls nothing"), ("def", "SyntaxError")):
        found = run_tests("def f(): pass", Suite(function="f", check_code=check), TIGHT)
        assert found.correct is None
        assert reason in found.reason


def test_a_check_sees_what_the_prelude_gives() -> None:
    suite = Suite(prelude="def twice(n): return 2 * n", function="f", check_code="assert f(twice(2)) == twice(f(2))")
    assert run_tests("def f(n): return twice(n)", suite, TIGHT).correct


# What takes all there is


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("while True: pass", "test 1 of 2: ran out of CPU time"),
        ("import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "test 1 of 2: "),
        ("while True: print('x' * 1000)", "test 1 of 2: ended with status"),
        ("import os\nwhile True:\n    try: os.write(1, b'x' * 1000)\n    except OSError: break", "test 1 of 2: printed too much"),
        ("x = []\nwhile True: x.append(bytearray(1 << 20))", "test 1 of 2: ended with status"),
        ("import os\nwhile True: os.fork()", "test 1 of 2: ended with status 1"),
        ("import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", "test 1 of 2: "),
        ("import threading\nwhile True: threading.Thread(target=threading.Event().wait).start()", "test 1 of 2: "),
        ("import os\nos.kill(os.getppid(), 9)", "test 1 of 2: ended with status"),
        ("import os\nos.kill(-1, 9)", "test 1 of 2: ended with status"),
        ("import os\nos.abort()", "test 1 of 2: ended with status -6"),
    ],
)  # fmt: skip
def test_what_takes_everything_meets_its_bounds(program: str, reason: str) -> None:
    began = time.monotonic()
    found = run_tests(program, ADD, TIGHT._replace(wall_seconds=4))
    assert found.correct is False
    assert found.reason.startswith(reason)
    assert time.monotonic() - began < 40  # the bound is 4 s; a busy machine is slow to start a sandbox
    assert run_tests(RIGHT, ADD, TIGHT).correct


@pytest.mark.parametrize(
    ("program", "suite"),
    [
        ("import time\ntime.sleep(60)", ADD),
        ("import threading\nthreading.Event().wait()", ADD),
        ("import time\ntime.sleep(60)\ndef add(a, b): pass", ADD_FUNCTION),
        ("def add(a, b): import time; time.sleep(60)", ADD_CHECK),
    ],
)
def test_who_waits_for_ever_meets_the_deadline(program: str, suite: Suite) -> None:
    found = run_tests(program, suite, TIGHT._replace(wall_seconds=1))
    assert found.correct is False
    assert found.reason.endswith("did not reply in time")


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("\n  while True: pass", "ran out of CPU time"),
        ("return 'x' * (1 << 20)", "sent too long a reply"),
        ("return [0] * 10**9", "raised MemoryError"),
        ("x = []; x.append(x); return x", "raised RecursionError"),
        ("import os; os._exit(0)", "ended with status 0"),
    ],
)
def test_a_function_meets_them_too(body: str, reason: str) -> None:
    found = run_tests(f"def add(a, b): {body}", ADD_FUNCTION, TIGHT)
    assert found == ProgramOutcome(False, f"test 1 of 2: {reason}")


def test_what_a_program_leaves_running_ends_with_its_test() -> None:
    mark = f"left-{os.getpid()}-{time.monotonic_ns()}"
    program = (
        f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', '{mark}'])\n{RIGHT}"
    )
    assert run_tests(program, Suite(cases=ADD.cases * 5), TIGHT).correct  # ten of them at a time would be too many
    until = time.monotonic() + 10
    while running(mark) and time.monotonic() < until:
        time.sleep(0.05)
    assert not running(mark)


def test_the_scratch_folder_is_small_and_gone_afterwards() -> None:
    source = """
        written = 0
        try:
            for number in range(100):
                with open(f"/tmp/{number}", "wb") as file:
                    written += file.write(bytes(100_000))
        except OSError:
            pass
        return written <= 1 << 20
    """
    assert reports(source, True).correct
    assert reports("import os\nreturn os.listdir('/tmp')", []).correct


# What tries to get out


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret.txt"
    path.write_text("secret")
    path.chmod(0o777)
    tmp_path.chmod(0o777)
    return path


def test_no_file_of_the_host_can_be_read(secret: Path) -> None:
    paths = [
        str(secret),
        "/etc/passwd",
        "/etc/hostname",
        "/proc/1/environ",
        "/proc/self/environ",
        "/sys/kernel",
        str(Path.home()),
        "/dev/sda",
    ]
    assert reports(f"import os\nreturn [path for path in {paths!r} if os.path.exists(path)]", []).correct
    assert run_tests(f"print(open({str(secret)!r}).read())", printing("secret"), TIGHT).correct is False


def test_nothing_can_be_written_but_the_scratch_folder(secret: Path) -> None:
    places = [
        "/x",
        "/python/x",
        "/box/x",
        "/box/permix/verification/guest/runner.py",
        "/usr/lib/x",
        "/dev/x",
        "/etc/x",
        str(secret),
    ]
    source = f"""
        written = []
        for place in {places!r}:
            try:
                open(place, "w").write("mine")
                written.append(place)
            except OSError:
                pass
        return written
    """
    assert reports(source, []).correct
    assert secret.read_text() == "secret"


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.2)
        yield listening


def test_nobody_can_be_called(server: socket.socket) -> None:
    addresses = [server.getsockname(), ("8.8.8.8", 53), ("::1", server.getsockname()[1])]
    source = f"""
        import socket
        reached = []
        for address in {addresses!r}:
            try:
                socket.create_connection(address, 0.2)
                reached.append(address)
            except OSError:
                pass
        return reached
    """
    assert reports(source, []).correct
    with pytest.raises(TimeoutError):
        server.accept()


def test_it_knows_nothing_of_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERMIX_SECRET_KEY", "secret")
    monkeypatch.setenv("PYTHONSTARTUP", "/tmp/x")
    known = ["HOME", "LC_CTYPE", "LD_LIBRARY_PATH", "PWD", "PYTHONHASHSEED", "PYTHONHOME", "PYTHONPATH"]
    assert reports("import os\nreturn sorted(os.environ)", known).correct
    assert reports("import os\nreturn [os.getuid(), os.getgid(), os.getppid()]", [65534, 65534, 1]).correct


def test_it_holds_its_channel_and_nothing_else(secret: Path) -> None:
    source = """
        import os
        held = []
        for descriptor in range(1000):
            try:
                os.fstat(descriptor)
                held.append(descriptor)
            except OSError:
                pass
        return held
    """
    with secret.open() as inherited:
        os.set_inheritable(inherited.fileno(), True)
        assert reports(source, [0, 1, 2, 3]).correct


def test_it_can_make_no_namespace_and_no_memory_that_is_not_counted() -> None:
    source = """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        tried = [libc.unshare(0x10000000), libc.memfd_create(b"x", 0), libc.shmget(0, 1 << 20, 0o1600), libc.ptrace(0, 0, 0, 0)]
        tried.append(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
        return [tried, ctypes.get_errno()]
    """
    assert reports(source, [[-1] * 5, 1]).correct


# What tries to lie

CLAIMS = """
import os, socket, struct
def claim(payload):
    for descriptor in range(3, 64):
        try: os.write(descriptor, struct.pack("!cQ16s", b"=", len(payload), bytes(16)) + payload)
        except OSError: pass
"""
CHANNEL = """
import gc
channel = next(one for one in gc.get_objects() if type(one).__name__ == "Channel")
def claim(payload): channel.send(b"=", payload)
"""
"""The runner's own channel: what is sent over it has the token of the last request."""


@pytest.mark.parametrize(
    ("program", "suite"),
    [
        ("class Same:\n    def __eq__(self, other): return True\ndef add(a, b): return Same()", ADD_CHECK),
        ("class Same(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Same()", ADD_CHECK),
        ("class Same(int):\n    def __eq__(self, other): return True\ndef add(a, b): return Same()", ADD_FUNCTION),
        ("import builtins\nbuiltins.AssertionError = None\nbuiltins.all = lambda x: True\ndef add(a, b): return 0", ADD_CHECK),
        ("import json\njson.dumps = json.loads = lambda *given, **named: 'true'\ndef add(a, b): return 0", ADD_FUNCTION),
        ("def add(a, b):\n    print('RESULT passed ok')\n    return True", ADD_FUNCTION),
        ("import sys\nsys.exit(0)", ADD_FUNCTION),
        ("import os\nos._exit(0)", ADD_CHECK),
        ("import atexit, os\natexit.register(os._exit, 0)\nprint('OK')", ADD),
        (f"{CLAIMS}\nclaim(b'')\nclaim(b'')\nclaim(b'')\nos._exit(0)", ADD),
        (f"{CLAIMS}\nclaim(b'')\nclaim(b'true')\nclaim(b'true')\nos._exit(0)", ADD_FUNCTION),
        (f"{CLAIMS}\nclaim(b'')\nfor _ in range(9): claim(b'true')\nos._exit(0)", ADD_CHECK),
    ],
)  # fmt: skip
def test_what_claims_to_be_right_is_wrong(program: str, suite: Suite) -> None:
    assert run_tests(program, suite, TIGHT).correct is False


THREES = Suite(function="add", cases=(Case('[[1, 2], {"dict": []}]', "3"),) * 3)
EARLY = "sent a reply before it was asked"


@pytest.mark.parametrize(
    ("program", "suite", "reason"),
    [
        (f"{CLAIMS}\nfor _ in range(50): claim(b'3')\ndef add(a, b): return 3", THREES, f"the program: {EARLY}"),
        (f"{CHANNEL}\nfor _ in range(50): claim(b'3')\ndef add(a, b): return 3", THREES, f"test 1 of 3: {EARLY}"),
        (f"{CHANNEL}\ndef add(a, b):\n  for _ in range(50): claim(b'3')\n  return 3", THREES, f"test 2 of 3: {EARLY}"),
        (f"{CHANNEL}\nclaim(b'')\nfor _ in range(9): claim(b'true')\ndef add(a, b): return 3", ADD_CHECK, f"a call: {EARLY}"),
        (f"{CHANNEL}\ndef add(a, b):\n  for _ in range(9): claim(b'3')\n  return 3", ADD_CHECK, f"a call: {EARLY}"),
    ],
)
def test_an_answer_counts_only_after_its_question_and_once(program: str, suite: Suite, reason: str) -> None:
    assert run_tests(program, suite, TIGHT) == ProgramOutcome(False, reason)


def test_a_program_that_answers_itself_after_each_question_has_answered() -> None:
    """It holds the channel of its own sandbox. It has to know the answers all the same."""
    serve = (
        "def add(a, b):\n  while True:\n    claim(str(a + b).encode())\n"
        "    a, b = __import__('json').loads(channel.receive().payload)[0]"
    )
    assert run_tests(f"{CHANNEL}\n{serve}", ADD_FUNCTION, TIGHT).correct
    assert not run_tests(f"{CHANNEL}\n{serve.replace('a + b', '3')}", ADD_FUNCTION, TIGHT).correct


@pytest.mark.parametrize(
    "frame",
    [
        'b"=" + (1 << 62).to_bytes(8) + bytes(16)',  # a frame without end
        'b"=" + (9).to_bytes(8) + bytes(16)',  # half a frame
        'b"="',
        'b"?" + bytes(24)',
        'b"\\xff" * 1000',
    ],
)
def test_frames_that_are_none_are_wrong_within_the_deadline(frame: str) -> None:
    program = f"import os\ndef add(a, b):\n  os.write(3, {frame}); __import__('time').sleep(9)"
    began = time.monotonic()
    assert run_tests(program, ADD_FUNCTION, TIGHT._replace(wall_seconds=2)).correct is False
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("value", "correct"),
    [
        ("complex(10 ** 300, 0)", False),
        ("{n * (2**61 - 1) for n in range(300)}", False),
        ("float('nan')", False),
        ("float('inf')", False),
        ("-0.0", False),
        ("[[]] * 1000", False),
        ("'3' * 100_000", False),
        ("b'3'", False),
        ("3 + 0j", True),
        ("True + 2", True),
    ],
)
def test_values_of_every_kind_are_judged(value: str, correct: bool) -> None:
    assert run_tests(f"def add(a, b): return {value}", THREES, TIGHT).correct is correct


HUGE_COMPLEX = '{"complex": [1' + "0" * 400 + ", 0]}"


@pytest.mark.parametrize("suite", [THREES, ADD_CHECK])
@pytest.mark.parametrize(
    "payload", [HUGE_COMPLEX, "[" * 10_000, '{"set": [[]]}', '{"": 0}'], ids=["complex", "deep", "set", "kind"]
)
def test_frames_that_hold_no_value_are_wrong(suite: Suite, payload: str) -> None:
    """Written by the program itself, as its own frame would be."""
    program = f"import time\n{CHANNEL}\ndef add(a, b):\n  claim({payload!r}.encode())\n  time.sleep(9)"
    assert run_tests(program, suite, TIGHT).correct is False


def test_a_set_of_integers_that_collide_ends_the_check_and_not_our_process() -> None:
    program = "def add(a, b): return {n * (2**61 - 1) for n in range(2500)}"
    began = time.process_time()
    assert run_tests(program, THREES, TIGHT._replace(cpu_seconds=6)).correct is False
    assert run_tests(program, ADD_CHECK, TIGHT).correct is False
    assert time.process_time() - began < 5


SEARCH = """
import gc, sys
def search():
    words, frame = [], sys._getframe()
    while frame is not None:
        words += [*map(repr, frame.f_locals.values()), repr(frame.f_globals)]
        frame = frame.f_back
    words += [repr(one) for one in gc.get_objects() if isinstance(one, (dict, list, tuple, str))]
    mark = "-".join(["hidden", "mark"])
    return "found" if any(mark in word for word in words) else "not found"
"""


def test_what_is_expected_is_nowhere_in_its_memory() -> None:
    cases = (Case('[[], {"dict": []}]', '"not found"'), Case('[[], {"dict": []}]', '"hidden-mark"'))
    assert run_tests(SEARCH, Suite(function="search", cases=cases), TIGHT) == ProgramOutcome(False, "test 2 of 2: wrong result")
    check = "hidden = 'hidden-mark'\nassert search() == 'not found'"
    assert run_tests(SEARCH, Suite(function="search", check_code=check), TIGHT).correct
    printed = Suite(cases=(Case("", "not found"), Case("", "hidden-mark")))
    assert run_tests(f"{SEARCH}\nprint(search())", printed, TIGHT) == ProgramOutcome(False, "test 2 of 2: wrong result")


def test_the_search_finds_what_is_there() -> None:
    assert run_tests(f"{SEARCH}\nmine = ['hidden-mark']\nprint(search())", printing("found"), TIGHT).correct
