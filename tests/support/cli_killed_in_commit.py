"""`python cli_killed_in_commit.py STAGE ARGUMENTS`: `ssl-backdoor ARGUMENTS` on S3, killed in the middle of a commit.

SIGKILL comes when all parts of the first artifact of STAGE are uploaded and its manifest is not.
"""

import os
import signal
import sys


def main() -> None:
    from flows.cli import main as ssl_backdoor
    from flows.terminal.reaper import run_and_reap_children
    from ssl_backdoor.store.s3 import S3Store

    stage, *arguments = sys.argv[1:]
    put_first = S3Store._put_first

    def killed(store, key, *rest):
        if f"/{stage}/" in key:
            os.kill(os.getpid(), signal.SIGKILL)
        return put_first(store, key, *rest)

    S3Store._put_first = killed
    run_and_reap_children(lambda: ssl_backdoor(arguments))


if __name__ == "__main__":
    main()
