"""What `make demo` runs: the whole system from nothing to two cited answers, then away again.

It starts the real stack under a temporary home, ingests `examples/documents`, asks one question in
English and one in Korean, and stops everything, however it ends. It touches no data of yours and
reads neither `SLUICE_*` variables nor `.env`. SLUICE_DEMO_KEEP=1 keeps the home folder.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

EXAMPLES = Path(__file__).resolve().parent
sys.path.insert(0, str(EXAMPLES.parent))

from cli.stack.launch import launch_argv  # noqa: E402  found through the line above

QUESTIONS = ("How long are nightly backups kept?", "연차 휴가는 1년에 며칠인가요?")
COLLECTION = "demo"
SLUICE = Path(sys.executable).with_name("sluice")
STOP_LIMIT_S = 60
ANNOUNCEMENT_LIMIT_S = 1
TAIL_LINES = 30
LOG_LINE = re.compile(r"(\S+) +\| ?(.*)")


class DemoFailed(Exception):
    """The demo could not be carried out; the message says why."""


class Stack:
    """`sluice up` as a child that ends with this process, even if that is killed."""

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._announced = threading.Event()
        self._process = subprocess.Popen(
            # With --json, stdout says one thing: that it is ready. The log goes to stderr.
            launch_argv([str(SLUICE), "up", "--json"]),
            env=environment,
            cwd=EXAMPLES,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the demo, which then stops the stack in order.
        )
        self._reader = threading.Thread(target=self._read, args=(log,), daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        """`sluice up` has time limits of its own, so this returns or raises in the end."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._reader.join()
            self.tail.clear()  # The stack has said why, and that has been shown.
            raise DemoFailed("The stack could not be started. The reason is above.")
        self._announced.wait(ANNOUNCEMENT_LIMIT_S)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # Its parts notice, and end themselves.
            self._process.wait()
        self._reader.join(STOP_LIMIT_S)

    def _read(self, log: Path) -> None:
        """Keep the whole log; show what the stack says of itself until it is ready."""
        assert self._process.stderr is not None
        part = ""
        with log.open("w", encoding="utf-8") as file:
            for line in self._process.stderr:
                file.write(line)
                file.flush()
                self.tail.append(line.rstrip())
                text = line.rstrip()
                if prefixed := LOG_LINE.match(text):
                    part, text = prefixed.groups()
                # A line without a prefix goes on with what the line above it says.
                if part == "sluice" and not self._announced.is_set():
                    print(f"   {text}", flush=True)
                    if text.startswith("ready:"):
                        self._announced.set()


def main() -> int:
    if not SLUICE.exists():
        print(f"There is no {SLUICE}. Run `make demo`, which installs it.", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    try:
        with _home() as home:
            return _demo(home)
    except KeyboardInterrupt:
        print("\nInterrupted; everything has been stopped.", file=sys.stderr)
        return 130


def _demo(home: Path) -> int:
    environment = _environment(home)
    print(f"1. Starting PostgreSQL, Redis, Chroma, the API and the workers under {home}")
    stack = Stack(environment, home / "demo.log")
    try:
        stack.wait_until_ready()
        print("\n2. Ingesting the documents of examples/documents")
        _sluice(environment, "ingest", "documents", "--collection", COLLECTION)
        print("\n3. Asking")
        for question in QUESTIONS:
            print(flush=True)
            answer = _sluice(environment, "ask", question, "--collection", COLLECTION)
            if "[1]" not in answer:
                raise DemoFailed("The answer cites no passage.")
    except DemoFailed as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)
        if stack.tail:
            print("The last lines of the stack:", file=sys.stderr)
            print(*(f"   {line}" for line in stack.tail), sep="\n", file=sys.stderr)
        print(
            "What to do: read the reason above, then run `SLUICE_DEMO_KEEP=1 make demo` to keep "
            "all logs, or `make up` and `.venv/bin/sluice doctor`.",
            file=sys.stderr,
        )
        return 1
    finally:
        stack.stop()
    print(
        "\nDone; everything has been stopped."
        "\nNext: `make up` keeps it running and prints the address of the API (its pages: /docs);"
        "\nthen `.venv/bin/sluice ingest FOLDER --collection mine` and `.venv/bin/sluice ask`."
        "\nexamples/README.md has more questions."
    )
    return 0


def _sluice(environment: Mapping[str, str], *arguments: str) -> str:
    """Run a command as a person would, show what it prints, and return that."""
    print(f"   $ sluice {shlex.join(arguments)}", flush=True)
    with subprocess.Popen(
        launch_argv([str(SLUICE), *arguments]),
        env=environment,
        cwd=EXAMPLES,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    ) as process:
        assert process.stdout is not None
        lines = []
        try:
            for line in process.stdout:
                lines.append(line)
                print(f"   {line}", end="", flush=True)
        except KeyboardInterrupt:
            process.terminate()
            raise
    if process.returncode != 0:
        raise DemoFailed(f"`sluice {arguments[0]}` ended with exit code {process.returncode}.")
    return "".join(lines)


@contextmanager
def _home() -> Iterator[Path]:
    """A folder of the demo's own, removed at the end unless SLUICE_DEMO_KEEP is set."""
    home = Path(tempfile.mkdtemp(prefix="sluice-demo-"))
    try:
        yield home
    finally:
        if os.environ.get("SLUICE_DEMO_KEEP", "0") not in ("", "0"):
            print(f"Kept: {home}", file=sys.stderr)
        else:
            shutil.rmtree(home, ignore_errors=True)


def _environment(home: Path) -> dict[str, str]:
    """This environment without its settings: the demo is the same on every machine."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    # Run from examples/, so that a `.env` of the repository is not read either.
    return {**own, "SLUICE_HOME": str(home), "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        # The answers hold Korean, which not every terminal can show.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    sys.exit(main())
