"""``python fluxguard.py [OPTION...] COMMAND...``: submit a job to Flux, and see that it ends.

Run as a file, by an interpreter that imports little else. SIGTERM means: cancel the job; the kernel
sends it when the client dies. The exit code is the job's, as ``flux job attach`` has it.
"""

import signal
import subprocess
import sys


class _Guard:
    def __init__(self) -> None:
        self.job = ""
        self.told = False

    def stop(self, *_: object) -> None:
        """Cancel the job; if it has none yet, as soon as it has one."""
        self.told = True
        if self.job:
            subprocess.run(["flux", "cancel", self.job], check=False, stdin=subprocess.DEVNULL)

    def run(self, words: list[str]) -> int:
        submitted = subprocess.run(
            ["flux", "submit", *words],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to this session must not cut it in half
            check=False,
            text=True,
        )
        if submitted.returncode:
            return submitted.returncode
        self.job = submitted.stdout.strip()
        if self.told:
            self.stop()
        attached = subprocess.Popen(
            ["flux", "job", "attach", self.job], stdin=subprocess.DEVNULL, start_new_session=True
        )
        return attached.wait()


if __name__ == "__main__":
    guard = _Guard()
    signal.signal(signal.SIGTERM, guard.stop)
    sys.exit(guard.run(sys.argv[1:]))
