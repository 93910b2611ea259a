"""A stand-in for `pgcli train` and `pgcli resume`: python fake.py train|resume RUN do=WHAT [key=value]...

ok       ends well at once                      fail     says `error: ...` and exits 1
crash    exits 1 after a last line              vanish   dies before its first checkpoint, then (second time) ends well
wait     checkpoints, then waits to be told: SIGTERM (exits 143; ends well when resumed), or the file `go`
half     says that it was interrupted, and exits 0; ends well when resumed
deaf     as wait, but does not listen to SIGTERM
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main():
    verb, run, *overrides = sys.argv[1:]
    run = Path(run)
    sweep = run.parent.parent
    do = dict(o.split("=", 1) for o in overrides)["do"]
    with (sweep / "calls.txt").open("a") as calls:
        calls.write(f"{verb} {run.name}\n")
    if do == "fail":
        print("error: an early one, which it survived")
        print(f"error: {dict(o.split('=', 1) for o in overrides).get('why', 'no reason')} at step {os.getpid()}")
        print("done")
        return 1
    if do == "crash":
        print("Segmentation fault")
        return 1
    if verb == "train":
        run.mkdir()
    if do == "vanish" and not (sweep / "vanished").exists():
        (sweep / "vanished").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    (run / "checkpoints" / "step-000000100").mkdir(parents=True, exist_ok=True)
    if do in ("wait", "deaf") and verb == "train":
        stopped = []
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        status(run, "running")
        while not (sweep / "go").exists():
            if stopped and do == "wait":
                return 143
            time.sleep(0.01)
    status(run, "interrupted" if do == "half" and verb == "train" else "completed")
    row = {"step": 100, "update": 1, "wall": 0.1, "eval/return_mean": 42.0}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return 0


def status(run, word):
    info = {
        "schema": 1,
        "id": run.name,
        "status": word,
        "choices": {},
        "slug": "",
        "seed": 0,
        "created": "",
        "ended": None,
        "steps": 0,
    }
    (run / "run.json").write_text(json.dumps(info))


if __name__ == "__main__":
    sys.exit(main())
