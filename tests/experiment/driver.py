"""A process that has imported everything once, and forks a child for each command line that it is told on its input.

So each command is a process of its own, that can be killed, for a tenth of the time that one from scratch takes.

    {"do": "start", "words": ["train", ...], "folder": ..., "out": ..., "err": ..., "mischief": {...}}   ->   a pid
    {"do": "wait", "pid": ...}   ->   its wait status
"""

import contextlib
import errno
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path

from pgcli.cli import main
from pgcli.experiment import loop, session
from pgcli.experiment.config import compose
from pgcli.runs import checkpoint, files
from pgcli.runs.writer import RunWriter

OPERATIONS = ("make_dir", "write", "fsync", "rename", "remove", "append")


def serve():
    for words in (["algo=ppo"], ["algo=grpo", "env=sort"], ["algo=a2c", "env=Acrobot-v1"]):
        compose(words)  # imports Hydra and the rest, once
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "wait":
            _, answer = os.waitpid(request["pid"], 0)
        else:
            answer = os.fork()
            if answer == 0:
                live(request)
        print(json.dumps(answer), flush=True)


def live(request):
    """The child: `pgcli WORDS` with its output in files, and whatever mischief was asked for."""
    code = 99
    try:
        for number, path in ((0, os.devnull), (1, request["out"]), (2, request["err"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), number)
        os.chdir(request["folder"])
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.fsync = lambda descriptor: None  # what the kernel has survives a kill
        for name, argument in request["mischief"].items():
            MISCHIEF[name](argument)
        sys.argv = ["pgcli", *request["words"]]
        main()
    except SystemExit as end:
        code = end.code
    except Exception:
        traceback.print_exc()
        code = 1
    finally:
        sys.stderr.flush()
        with contextlib.suppress(BrokenPipeError):
            sys.stdout.flush()
        os._exit(code)


# ---------------------------------------------------------------- mischief


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def note_cpu_seconds(path):
    """Of the loop, as a scale for `die_after_cpu_seconds`."""
    real = session.run_loop

    def measured(*arguments):
        began = time.process_time()
        real(*arguments)
        Path(path).write_text(str(time.process_time() - began))

    session.run_loop = measured


def die_after_cpu_seconds(seconds):
    """Of the loop. Not of the wall clock, so that a busy machine changes little."""
    real = session.run_loop

    def doomed(*arguments):
        signal.signal(signal.SIGPROF, lambda number, frame: die())
        signal.setitimer(signal.ITIMER_PROF, seconds)
        real(*arguments)

    session.run_loop = doomed


def die_before_loop(_):
    session.run_loop = lambda *arguments: die()


def die_after_loop(_):
    """When all is done, and only run.json does not know it yet."""
    real = session.run_loop
    session.run_loop = lambda *arguments: (real(*arguments), die())


def watch_save(wanted):
    """Of the `save`-th checkpoint: note each operation on the disk in a file, or die before or half-way in one."""
    saves, count = 0, 0
    real_save = RunWriter.save

    def save(*arguments, **options):
        nonlocal saves
        saves += 1
        result = real_save(*arguments, **options)
        if saves == wanted["save"]:
            saves = -10_000  # what comes between two checkpoints does not count
        return result

    def wrap(name):
        real = getattr(files, name)

        def operation(target, *arguments):
            nonlocal count
            if saves == wanted["save"]:
                count += 1
                if "note" in wanted:
                    with Path(wanted["note"]).open("a") as out:
                        out.write(f"{name} {Path(target).name}\n")
                if count == wanted.get("die_at"):
                    if name == "write" and wanted["torn"]:
                        real(target, arguments[0][: len(arguments[0]) // 2])
                    die()
            return real(target, *arguments)

        setattr(files, name, operation)

    RunWriter.save = save
    for name in OPERATIONS:
        wrap(name)


def signal_in(wanted):
    """A `signal` when the loop begins a `part` of its work for the `nth` time; before it begins; or before all that."""

    def send():
        for _ in range(wanted.get("times", 1)):
            os.kill(os.getpid(), getattr(signal, wanted["signal"]))

    if wanted["part"] in ("build", "begin"):
        name = {"build": "build", "begin": "run_loop"}[wanted["part"]]
        real_function = getattr(session, name)
        setattr(session, name, lambda *arguments, **options: (send(), real_function(*arguments, **options))[1])
        return
    real, begun = loop.Clock.__call__, 0

    def part(clock, name):
        nonlocal begun
        if name == wanted["part"]:
            begun += 1
            if begun == wanted["nth"]:
                send()
        return real(clock, name)

    loop.Clock.__call__ = part


def break_output(_):
    """Standard output is a pipe that nobody reads any longer."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)


def limit_file_size(size):
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def full_disk_at_checkpoint(nth):
    """No space left half-way through the weights of the nth checkpoint, and from then on not for anything larger."""
    real_write, real_encode, encoded = files.write, checkpoint.encode, 0

    def encode(state):
        nonlocal encoded
        encoded += 1
        return real_encode(state)

    def write(path, data):
        if encoded >= nth and path.name == checkpoint.MODEL:
            real_write(path, data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real_write(path, data)

    checkpoint.encode, files.write = encode, write


MISCHIEF = {
    f.__name__: f
    for f in (
        note_cpu_seconds, die_after_cpu_seconds, die_before_loop, die_after_loop, watch_save, signal_in,
        break_output, limit_file_size, full_disk_at_checkpoint,
    )
}  # fmt: skip

if __name__ == "__main__":
    serve()
