"""kill -9 of the real sendmail at each of its system calls, all of them: the full form of crash/test_sendmail.py.

    cd tests && PYTHONPATH=.. python3 -m soak.submission_kill [--large]

Prints for each kind of call how many kills left no message and how many a whole one; anything else ends it.
"""

import argparse
import pathlib
import tempfile
from collections import Counter

from crash.test_sendmail import LARGE, SMALL, Submission
from spool.make import RecordingQueue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--large", action="store_true", help="a message of 420 KB instead of 26 octets"
    )
    message = LARGE if parser.parse_args().large else SMALL
    with tempfile.TemporaryDirectory(prefix="minisend-soak-") as directory:
        sweep(pathlib.Path(directory), message)


def sweep(directory: pathlib.Path, message: bytes) -> None:
    def prepared(name: str) -> Submission:
        submission = Submission(directory / name, message)
        RecordingQueue(submission.spool).close()
        return submission

    # Once for the byte code of the package, once to count the calls.
    prepared("warm").run("-e", "trace=none")
    counted = prepared("counted")
    if counted.run() != 0:
        raise SystemExit("an undisturbed submission failed")
    calls = Counter(line.partition("(")[0] for line in counted.calls() if "(" in line)
    kills = nothing = whole = 0
    for kind, count in sorted(calls.items()):
        left: Counter[bool] = Counter()
        for number in range(1, count + 1):
            submission = prepared(f"{kind}{number}")
            code = submission.run(
                "-e", f"trace={kind}", "-e", f"inject={kind}:signal=KILL:when={number}"
            )
            # The interpreter's own last calls may come or not; a run that was not killed must have queued.
            kept = submission.whole()
            if code == 0 and not kept:
                raise SystemExit(f"{kind} {number}: exit 0, and no message")
            left[kept] += 1
        print(
            f"{kind:20}{count:5} calls: {left[False]:4} left nothing, {left[True]:4} a whole message"
        )
        kills += count
        nothing += left[False]
        whole += left[True]
    print(f"{kills} kills: {nothing} left nothing, {whole} a whole message, none anything else")


if __name__ == "__main__":
    main()
