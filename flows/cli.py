"""The ``ssl-backdoor`` command: parse arguments, run, print.

Exit codes: 0 done, 1 something failed, 2 a mistake that the user can fix, 130 interrupted, 141 nobody reads what is
printed, 143 terminated.
"""

import argparse
import gc
import importlib
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from flows import settings
from flows.commands import machine
from flows.terminal import output
from flows.terminal.arguments import MANY_RUNS, Command, parse
from flows.terminal.output import print_error, print_json, print_lines
from flows.terminal.reaper import run_and_reap_children
from ssl_backdoor.errors import SpecError, SslBackdoorError, UserError
from ssl_backdoor.specs import Stage
from tasks import embedded_prefect
from tasks.loopback import around_proxies

if TYPE_CHECKING:
    from ssl_backdoor.specs import ReportSpec
    from ssl_backdoor.store import ArtifactStore


class _Terminated(KeyboardInterrupt):
    """SIGTERM, which does what Ctrl-C does."""


def program() -> None:
    """Entry point."""
    output.open_standard_streams()
    run_and_reap_children(main)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse arguments, run the command and print its result; ends in SystemExit."""
    gc.set_threshold(100_000)  # imported objects stay: scanning them again and again takes a second of a command
    signal.signal(signal.SIGTERM, _raise_terminated)
    try:
        code = _run_command(arguments)
    except output.NobodyReadsError:
        code = 128 + signal.SIGPIPE
    except UserError as error:
        print_error(str(error))
        code = 2
    except SslBackdoorError as error:
        print_error(str(error))
        code = 1
    except ModuleNotFoundError as error:
        if error.name not in ("prefect", "ray", "mlflow", "rich"):
            raise
        print_error(f"this command needs {error.name}: pip install 'ssl-backdoor[pipeline]', or `make setup`.")
        code = 2
    except KeyboardInterrupt as error:
        print_error(
            "interrupted; finished stages and checkpoints are kept; run the same command again to resume", is_new=True
        )
        code = 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
    gc.freeze()  # the interpreter's last collection would take another
    sys.exit(code)


def _run_command(arguments: Sequence[str] | None) -> int:
    if sys.stdout is None:
        raise UserError("stdout is closed: redirect it, to /dev/null where nobody needs what is printed")
    options = parse(arguments, _COMMANDS)
    settings.embed()
    command: Command = options.command
    return command(options)


def _raise_terminated(*_: object) -> NoReturn:
    raise _Terminated


def _run(options: argparse.Namespace) -> int:
    from flows.terminal.console import reserve_stdout

    started = time.perf_counter()
    with reserve_stdout():
        result = _execute(options)
    seconds = round(time.perf_counter() - started, 1)
    if options.json:
        result["seconds"] = {"total": seconds, **result["seconds"]}
        print_json(result)
        return 1 if result["missing"] else 0
    print_lines(result.pop("text", "").split("\n"))
    print_lines(f"{name}: {place}" for name, place in result["artifacts"].items())
    print_lines([f"{seconds} s"])
    for cell in result["missing"]:
        print_error(f"missing, {cell}")
    return 1 if result["missing"] else 0


def _estimate(options: argparse.Namespace) -> int:
    from flows.terminal.console import reserve_stdout
    from ssl_backdoor.store import open_store

    report = _plan(options, _parse_request(options), has_data=bool(options.data or options.images))
    machine.check()
    store = open_store(options.store or settings.default_store())
    with reserve_stdout():
        from flows.estimate.command import EstimateOptions, estimate
        from flows.estimate.render import render
        from tasks.planner import Sources

        sources = Sources(options.data, options.test_data, options.probe_data)
        asked = EstimateOptions(options.devices, sources, options.images, options.seconds)
        result = estimate(report, store, asked)
    _print(result, render, options.json)
    return 0


def _parse_request(options: argparse.Namespace) -> dict[str, Any]:
    from flows.overrides import with_list
    from flows.recipes import load_own
    from ssl_backdoor import plugins

    plugins.load_installed()
    for name in options.plugins:
        plugins.load(name)
    if ".py:" in options.recipe:
        load_own(options.recipe)
    return {
        "recipe": options.recipe,
        "pairs": options.pairs or 0,
        "seeds": options.seeds or 0,
        "settings": tuple(with_list(setting) for setting in options.settings),
    }


def _execute(options: argparse.Namespace) -> dict[str, Any]:
    from flows.pipeline import check_specs
    from ssl_backdoor.store import ArtifactRef, open_store
    from tasks.planner import Sources

    asked = _parse_request(options)
    report = _plan_and_confirm(options, asked)
    machine.check()
    store = open_store(options.store or settings.default_store())
    check_specs(report, store, Sources(options.data, options.test_data, options.probe_data))
    store.check()

    is_first_run = embedded_prefect.needs_new_database()
    embedded_prefect.start()
    from flows.matrix import IncompleteError
    from flows.run import Shell, experiment, matrix, run_for
    from flows.terminal.console import show_progress
    from ssl_backdoor.specs import Resources
    from tasks.ray_fit import connect_ahead, disconnect

    resources = Resources(workers=options.workers)
    if is_first_run and options.until not in ("ingest", "poison"):
        connect_ahead(resources)
    # MLflow and SciPy take seconds to import: meanwhile Prefect's server starts.
    threading.Thread(target=_import_ahead, args=(options.until, is_first_run), daemon=True).start()

    missing: tuple[str, ...] = ()
    made: list[ArtifactRef] = []
    try:
        with show_progress() as display, run_for(Shell(display, report, store, made)):
            page = (matrix if report.tables else experiment)(
                **asked,
                methods=options.methods or "",
                size=options.size or "default",
                data=options.data or "",
                probe_data=options.probe_data or "",
                test_data=options.test_data or "",
                store=store.root,
                resources=resources,
                until=options.until,
            )
    except IncompleteError as error:
        page, missing = error.page, error.missing
    finally:
        disconnect()  # after a failure or Ctrl-C this ends the trainings that still run; their checkpoints stay
    from flows.commands.results import describe

    return describe(report, page, store, options.until, made) | {"missing": list(missing)}


def _plan_and_confirm(options: argparse.Namespace, asked: dict[str, Any]) -> "ReportSpec":
    """The runs that were asked for; a mistake is reported before anything starts.

    Raises:
        SpecError: the command line is not a valid run.
    """
    report = _plan(options, asked, has_data=options.data is not None)
    if len(report.runs) > MANY_RUNS and not options.yes and not _confirm(len(report.runs)):
        raise SpecError(f"{len(report.runs):,} runs are many: lower --pairs or --seeds, or give --yes")
    return report


def _plan(options: argparse.Namespace, asked: dict[str, Any], *, has_data: bool) -> "ReportSpec":
    from flows.plan import plan

    return plan(**asked, methods=options.methods, size=options.size, has_data=has_data)


def _confirm(num_runs: int) -> bool:
    """Ask for confirmation at a terminal; False without one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"ssl-backdoor: this is {num_runs:,} runs. Continue? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _import_ahead(until: Stage, is_first: bool) -> None:
    importlib.import_module("flows.commands.results")
    if until == "report":
        from tasks.tracking import open_database_ahead

        open_database_ahead()
        if is_first:  # nothing can be reused: a report will be rendered
            importlib.import_module("ssl_backdoor.report.page")


def _inspect(options: argparse.Namespace) -> int:
    from flows.commands.inspect import inspect, render
    from flows.terminal.console import reserve_stdout
    from tasks.planner import Sources

    with reserve_stdout():
        out = options.out or settings.HOME / "inspections"
        found = inspect(options.settings, Sources(options.data, options.test_data), out)
    _print(found, render, options.json)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from flows.commands.compare import compare, render

    store, out = options.store or settings.default_store(), options.out or settings.HOME / "comparisons"
    _print(compare(options.reports, options.by, store, out), render, options.json)
    return 0


def _recipes(_: argparse.Namespace) -> int:
    from flows.recipes import RECIPES, Sized

    for name, one in RECIPES.items():
        for recipe in one if isinstance(one, Sized) else (one,):
            data = "--data PATH" if recipe.needs_data else "embedded data"
            size = ", --size paper" if isinstance(one, Sized) and recipe is one.paper else ""
            amount = f"{recipe.pairs} pair(s), {recipe.seeds} seed(s)"
            print_lines([f"{name:<28}{recipe.summary} ({data}{size}; {amount})"])
    return 0


def _show(options: argparse.Namespace) -> int:
    from flows.commands.results import resolve

    store, ref = resolve(options.ref, options.store or settings.default_store())
    manifest = store.manifest(ref)
    if isinstance(performance := manifest.summary.get("performance"), dict):
        performance.pop("series", None)  # hundreds of lines; MLflow draws them
    print_json(manifest.model_dump(mode="json"), indent=2)
    return 0


def _export(options: argparse.Namespace) -> int:
    from flows.commands.results import resolve
    from ssl_backdoor.data.stored import open_dataset, open_overlay
    from ssl_backdoor.poison.export import export
    from ssl_backdoor.store.base import explain_damage

    store, ref = resolve(options.ref, options.store or settings.default_store())
    if ref.stage not in ("ingest", "poison"):
        raise SpecError(f"export takes an ingest or a poison artifact, found {ref.stage}/{ref.key[:12]}")
    if options.out.exists():
        raise SpecError(f"--out must not exist yet, found {str(options.out)!r}")
    with explain_damage(ref):
        base = ref if ref.stage == "ingest" else store.ref("ingest", store.manifest(ref).inputs["dataset"])
    overlay = open_overlay(store, ref) if ref.stage == "poison" else None
    print_json(export(open_dataset(store, base), overlay, options.out))
    return 0


def _reindex(options: argparse.Namespace) -> int:
    from ssl_backdoor.store import open_store
    from tasks.tracking import reindex

    failed: list[str] = []
    print_lines(reindex(open_store(options.store or settings.default_store()), failed.append))
    for reason in failed:
        print_error(f"left out: {reason}")
    return 1 if failed else 0


def _status(options: argparse.Namespace) -> int:
    from flows.commands.gc import report_slow_progress
    from flows.commands.status import render, status

    _print(status(_existing_store(options.store), report_slow_progress("status")), render, options.json)
    return 0


def _gc(options: argparse.Namespace) -> int:
    from flows.commands.gc import GcOptions, collect, render, report_slow_progress

    asked = GcOptions(options.delete, options.unreached, options.older_than, options.forget)
    _print(collect(_existing_store(options.store), asked, report_slow_progress("gc")), render, options.json)
    return 0


def _existing_store(uri: str | None) -> "ArtifactStore":
    """The store at ``uri``, or this shell's. A mistyped folder does not become one.

    Raises:
        SpecError: there is no folder at ``uri``.
    """
    from ssl_backdoor.store import is_folder, open_store
    from ssl_backdoor.store.local import folder_of

    if uri is not None and is_folder(uri) and not folder_of(uri).is_dir():
        raise SpecError(f"expected a store at {uri!r}, found no folder there; give another --store")
    return open_store(uri or settings.default_store())


def _print(result: dict[str, Any], render: Callable[[Mapping[str, Any]], Iterator[str]], is_json: bool) -> None:
    if is_json:
        print_json(result)
    else:
        print_lines(render(result))


def _env(options: argparse.Namespace) -> int:
    found = settings.of_stack()
    if options.logins:
        user, password = found["MLFLOW_TRACKING_USERNAME"], found["MLFLOW_TRACKING_PASSWORD"]
        print_lines(
            [
                f"Prefect  {found['PREFECT_API_URL'].removesuffix('/api')}  {found['PREFECT_API_AUTH_STRING']}",
                f"MLflow   {found['MLFLOW_TRACKING_URI']}  user {user}, password {password}",
            ]
        )
        return 0
    shown = {**found, **around_proxies(os.environ)}
    print_lines(f"export {name}={shlex.quote(value)}" for name, value in shown.items())
    return 0


def _browse(_: argparse.Namespace) -> int:
    from flows.commands.browse import browse

    machine.check()
    return browse()


def _doctor(options: argparse.Namespace) -> int:
    from flows.commands.doctor import examine

    findings = examine(options.store or settings.default_store())
    print_lines(f"{'ok  ' if one.ok else 'FIX '} {one.name:<10} {one.text}" for one in findings)
    return 0 if all(finding.ok for finding in findings) else 2


_COMMANDS: dict[str, Command] = {
    "run": _run,
    "estimate": _estimate,
    "inspect": _inspect,
    "compare": _compare,
    "recipes": _recipes,
    "show": _show,
    "export": _export,
    "reindex": _reindex,
    "status": _status,
    "gc": _gc,
    "env": _env,
    "browse": _browse,
    "doctor": _doctor,
}

if __name__ == "__main__":
    program()
