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
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from flows import settings
from flows.commands import machine
from flows.terminal import output
from flows.terminal.arguments import MANY_RUNS, Command, parse, short_settings
from flows.terminal.output import print_error, print_json, print_lines
from flows.terminal.reaper import run_and_reap_children
from ssl_backdoor.errors import SpecError, SslBackdoorError, StoreAwayError, UserError
from ssl_backdoor.specs import Stage
from tasks import embedded_prefect
from tasks.loopback import around_proxies

if TYPE_CHECKING:
    from ssl_backdoor.specs import ReportSpec
    from ssl_backdoor.stages import StageCall
    from ssl_backdoor.store import ArtifactRef, ArtifactStore
    from tasks.planner import Digest, Sources


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
        if error.name not in ("prefect", "ray", "mlflow", "rich", "yaml", "argcomplete"):
            raise
        print_error(f"this command needs {error.name}: pip install 'ssl-backdoor[pipeline]', or `make setup`.")
        code = 2
    except KeyboardInterrupt as error:
        print_error(
            "interrupted; finished stages and checkpoints are kept; run the same command again to resume", is_new=True
        )
        code = 128 + (signal.SIGTERM if isinstance(error, _Terminated) else signal.SIGINT)
    if "triton" not in sys.modules:  # it complains of what is not collected
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

    if options.print_spec:
        return _print_spec(options)
    if options.dry_run:
        return _dry_run(options)
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
    print_lines([f"{seconds} s", *result["next"]])
    for cell in result["missing"]:
        print_error(f"missing, {cell}")
    return 1 if result["missing"] else 0


def _print_spec(options: argparse.Namespace) -> int:
    from flows.spec_files import write
    from ssl_backdoor.specs import FilesSourceSpec

    asked, _ = _parse_request(options)
    report = _plan(options, asked, has_data=True if options.data else None)
    if not options.json:
        data = " --data PATH" * any(isinstance(run.dataset.source, FilesSourceSpec) for run in report.runs)
        plugins = "".join(f" --plugin {shlex.quote(name)}" for name in options.plugins)
        print_lines([f"# ssl-backdoor run THIS.yaml{data}{plugins}"])
    print_lines(write(report, as_json=options.json).rstrip("\n").split("\n"))
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    from flows.commands.dry_run import dry_run, render
    from flows.pipeline import check_data

    planned = _prepare(options)
    check_data(planned.calls, planned.store)
    _print(dry_run(planned.calls, planned.store, options.until), render, options.json)
    return 0


def _estimate(options: argparse.Namespace) -> int:
    from flows.terminal.console import reserve_stdout
    from ssl_backdoor.store import open_store

    asked, digest = _parse_request(options)
    report = _plan(options, asked, has_data=bool(options.images) or _has_data(options))
    machine.check()
    store = open_store(options.store or settings.default_store())
    with reserve_stdout():
        from flows.estimate.command import EstimateOptions, estimate
        from flows.estimate.render import render
        from tasks.planner import Sources

        sources = Sources(options.data, options.test_data, options.probe_data)
        how = EstimateOptions(options.devices, sources, options.images, options.seconds, digest)
        result = estimate(report, store, how)
    _print(result, render, options.json)
    return 0


def _parse_request(options: argparse.Namespace) -> "tuple[dict[str, Any], Digest]":
    """What the flow is asked for, and how the data are told apart."""
    from flows import own_recipes
    from flows.overrides import with_list

    _load_plugins(options)
    digest = own_recipes.load(options.recipe, options.store or settings.default_store())
    return {
        "recipe": options.recipe,
        "pairs": options.pairs or 0,
        "seeds": options.seeds or 0,
        "settings": tuple(with_list(setting) for setting in (*short_settings(options), *options.settings)),
    }, digest


def _load_plugins(options: argparse.Namespace) -> None:
    from ssl_backdoor import plugins

    plugins.load_installed()
    for name in options.plugins:
        plugins.load(name)


def _has_data(options: argparse.Namespace) -> bool | None:
    """None for a report of the store that is run again: what its data were is known."""
    return True if options.data else None if options.recipe.startswith("report/") else False


class _Planned(NamedTuple):
    """A run before anything starts."""

    asked: dict[str, Any]
    report: "ReportSpec"
    store: "ArtifactStore"
    sources: "Sources"
    digest: "Digest"
    calls: "Mapping[ArtifactRef, StageCall]"


def _prepare(options: argparse.Namespace) -> _Planned:
    """The run that was asked for, as far as the data are not looked at but for their digest.

    Raises:
        UserError: a mistake; nothing was started.
    """
    from flows.pipeline import check_specs, plan_stages
    from ssl_backdoor.store import open_store
    from tasks.planner import Sources

    asked, digest = _parse_request(options)
    report = _plan_and_confirm(options, asked)
    machine.check()
    store = open_store(options.store or settings.default_store())
    sources = Sources(options.data, options.test_data, options.probe_data)
    check_specs(report, store, sources)
    store.check()
    once = cache(digest)
    return _Planned(asked, report, store, sources, once, plan_stages(report, store, once, sources))


def _execute(options: argparse.Namespace) -> dict[str, Any]:
    from flows.commands import results

    planned = _prepare(options)
    store, until = planned.store, options.until
    reused = results.find_reused(planned.calls, store, until)
    page, made, missing = (reused[-1], reused, ()) if reused else _compute(options, planned)
    found = results.describe(planned.report, page, store, until, made)
    last = [page] if until == "report" else made
    return found | {"missing": list(missing), "next": results.next_commands(options.arguments, until, last)}


def _compute(
    options: argparse.Namespace, planned: _Planned
) -> "tuple[ArtifactRef, Sequence[ArtifactRef], Sequence[str]]":
    """The last artifact of the run, all those of its last stage, and the cells that did not come through."""
    from flows.pipeline import check_data
    from flows.terminal.console import show_progress

    made: list[ArtifactRef] = []
    with show_progress() as display:
        with suppress(StoreAwayError):  # the flow waits for it, and each stage checks for itself
            check_data(planned.calls, planned.store)
        is_first_run = embedded_prefect.needs_new_database()
        embedded_prefect.start()
        from flows.matrix import IncompleteError
        from flows.run import Shell, experiment, matrix, run_for
        from ssl_backdoor.specs import Resources
        from tasks.ray_fit import connect_ahead, disconnect

        resources = Resources(workers=options.workers)
        if is_first_run and options.until not in ("ingest", "poison"):
            connect_ahead(resources)
        # MLflow and SciPy take seconds to import: meanwhile Prefect's server starts.
        threading.Thread(target=_import_ahead, args=(options.until, is_first_run), daemon=True).start()
        try:
            with run_for(Shell(display, planned.report, planned.store, planned.digest, made)):
                page = (matrix if planned.report.tables else experiment)(
                    **planned.asked,
                    methods=options.methods or "",
                    size=options.size or "default",
                    data=options.data or "",
                    probe_data=options.probe_data or "",
                    test_data=options.test_data or "",
                    store=planned.store.root,
                    resources=resources,
                    until=options.until,
                )
        except IncompleteError as error:
            return error.page, made, error.missing
        finally:
            disconnect()  # after a failure or Ctrl-C this ends the trainings that still run; their checkpoints stay
    return page, made, ()


def _plan_and_confirm(options: argparse.Namespace, asked: dict[str, Any]) -> "ReportSpec":
    """The runs that were asked for; a mistake is reported before anything starts.

    Raises:
        SpecError: the command line is not a valid run.
    """
    report = _plan(options, asked, has_data=_has_data(options))
    if len(report.runs) > MANY_RUNS and not options.yes and not _confirm(len(report.runs)):
        raise SpecError(f"{len(report.runs):,} runs are many: lower --pairs or --seeds, or give --yes")
    return report


def _plan(options: argparse.Namespace, asked: dict[str, Any], *, has_data: bool | None) -> "ReportSpec":
    from flows.plan import plan_and_count
    from tasks.planner import Sources

    sources = Sources(options.data, options.test_data, options.probe_data)
    planned = plan_and_count(**asked, methods=options.methods, size=options.size, has_data=has_data, sources=sources)
    if planned.counts is not None and options.command is _run and options.until == "report":
        from flows.estimate.counted import sentence

        print_error(sentence(planned.report, planned.counts))
    return planned.report


def _confirm(num_runs: int) -> bool:
    """Ask for confirmation at a terminal; False without one."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    sys.stderr.write(f"ssl-backdoor: this is {num_runs:,} runs. Continue? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _import_ahead(until: Stage, is_first: bool) -> None:
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


def _evaluate_encoder(options: argparse.Namespace) -> int:
    from flows.commands.encoder import evaluate_encoder
    from flows.terminal.console import reserve_stdout

    with reserve_stdout():
        found = evaluate_encoder(options, options.store or settings.default_store())
    text = found.pop("text")
    _print(found, lambda _: iter(text), options.json)
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from flows.commands.listing import recipes, render_recipes

    _print(recipes(), render_recipes, options.json)
    return 0


def _describe(options: argparse.Namespace) -> int:
    from flows.fields import describe

    _load_plugins(options)
    print_lines(describe(options.path))
    return 0


def _list(options: argparse.Namespace) -> int:
    from flows.commands.gc import report_slow_progress
    from flows.commands.listing import artifacts, render_artifacts

    found = artifacts(_existing_store(options.store), options.stage, report_slow_progress("list"))
    _print(found, render_artifacts, options.json)
    return 0


def _completion(options: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print_lines(shellcode(["ssl-backdoor"], shell=options.shell).split("\n"))
    return 0


def _show(options: argparse.Namespace) -> int:
    from flows.commands.results import resolve
    from flows.own_recipes import is_file

    if "/" not in options.recipe or is_file(options.recipe):
        return _print_spec(options)
    store, ref = resolve(options.recipe, options.store or settings.default_store())
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

    _load_plugins(options)
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
    "evaluate --encoder": _evaluate_encoder,
    "compare": _compare,
    "recipes": _recipes,
    "describe": _describe,
    "list": _list,
    "show": _show,
    "export": _export,
    "reindex": _reindex,
    "status": _status,
    "gc": _gc,
    "env": _env,
    "browse": _browse,
    "doctor": _doctor,
    "completion": _completion,
}

if __name__ == "__main__":
    program()
