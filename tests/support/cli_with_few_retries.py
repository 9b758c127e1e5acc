"""`python cli_with_few_retries.py ARGUMENTS`: `ssl-backdoor ARGUMENTS`, with an S3 client that soon gives up.

It tries a request twice; the usual eight tries take half a minute or more.
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
