"""`python impatient_shell.py ARGUMENTS`: `ssl-backdoor ARGUMENTS`; its S3 client gives up after two tries of a request.

Its eight take half a minute or more.
"""

import sys


def main() -> None:
    from flows.cli import main as ssl_backdoor
    from flows.terminal.reaper import run_and_reap_children
    from ssl_backdoor.store import s3

    s3._TRIES = 2
    run_and_reap_children(lambda: ssl_backdoor(sys.argv[1:]))


if __name__ == "__main__":
    main()
