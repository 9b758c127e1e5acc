"""`python impatient_shell.py ARGUMENTS`: `ssl-backdoor ARGUMENTS`; its S3 client gives up after two tries of a request.

Its eight take half a minute or more.
"""

import sys


def main() -> None:
    from flows.cli import main as ssl_backdoor
    from flows.endings import leaving_nothing
    from ssl_backdoor.store import s3

    s3._TRIES = 2
    leaving_nothing(lambda: ssl_backdoor(sys.argv[1:]))


if __name__ == "__main__":
    main()
