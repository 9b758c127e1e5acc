"""``python -m infra.stack up|down|status``.

Exit codes: 0 done, 1 a service failed or is not well, 2 a mistake that the user can fix, 130 interrupted.
"""

import argparse
import signal
import sys
from collections.abc import Sequence

from infra.stack import control
from ssl_backdoor.errors import SslBackdoorError, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call, tell."""
    parser = argparse.ArgumentParser(prog="infra.stack", description="The service stack of one machine, on loopback.")
    parser.add_argument("action", choices=("up", "down", "status"))
    action = {"up": control.up, "down": control.down, "status": control.status}[parser.parse_args(arguments).action]
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)  # whoever ends `up` half way finds nothing half started
    try:
        return action()
    except UserError as error:
        return _tell(str(error), 2)
    except SslBackdoorError as error:
        return _tell(str(error), 1)
    except KeyboardInterrupt:
        return _tell("interrupted.", 130)


def _tell(text: str, code: int) -> int:
    sys.stderr.write(f"stack: {text}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
