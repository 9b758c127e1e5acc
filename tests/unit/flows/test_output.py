"""What commands print, and what they do where nobody takes it."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows import cli
from flows.terminal import output
from flows.terminal.arguments import parse
from ssl_backdoor.errors import SpecError, SslBackdoorError, StoreError, UserError, replace_control_chars
from tasks import logs

HOSTILE = {
    "colours": "\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "one byte": "\x9b2J",
    "title": "\x1b]0;owned\x07",
    "new line": "cat\nssl-backdoor: all is well",
    "carriage return": "cat\rdog",
    "back": "cat\b\b\bdog",
    "separators": "a\u2028b\u2029c\x85d\x1ee\x0bf\x0cg",
    "right to left": "gpj.\u202eexe",
    "surrogate": "a\udcffb",
    "nothing": "a\x00b\x7fc",
    "no width": "a\u200bb\ufeffc",
}


@pytest.fixture(params=HOSTILE)
def hostile(request) -> str:
    return HOSTILE[request.param]


def is_one_clean_line(text: str) -> bool:
    return text.endswith("\n") and text[:-1].isprintable()


def test_every_way_out_prints_one_clean_line(hostile, capsys):
    output.print_lines([f"{'ok':<10}{hostile}"])
    output.print_error(hostile)
    output.print_json({hostile: hostile})
    out, err = capsys.readouterr()
    shown, as_json = out.splitlines(keepends=True)
    assert is_one_clean_line(shown)
    assert shown.startswith("ok        ")
    assert is_one_clean_line(err)
    assert as_json.isascii()
    assert json.loads(as_json) == {hostile: hostile}


@pytest.mark.parametrize("kind", [SslBackdoorError, UserError, SpecError, StoreError])
def test_an_error_is_a_clean_line_wherever_it_is_shown(kind, hostile):
    error = kind(f"expected {hostile!s} at http://me:pa55@host/x")
    assert str(error).isprintable()
    assert f"{error}" == str(error)
    assert "pa55" not in str(error)
    assert error.args[0].startswith(f"expected {hostile}")


def test_logs_are_clean_lines(hostile, monkeypatch):
    for format in ("lines", "json"):
        monkeypatch.setenv("SSL_BACKDOOR_LOG", format)
        written = io.StringIO()
        monkeypatch.setattr(sys, "stderr", written)
        with logs.attach_handlers(logs.stderr_handler()):
            logs.LOG.info("begins %s", hostile)
            try:
                raise ValueError(hostile)
            except ValueError:
                logs.LOG.exception("unexpected")
        assert all(line.isprintable() for line in written.getvalue().split("\n"))
        assert "\n".join(line for line in written.getvalue().split("\n") if line.startswith("ssl-")) == ""


def test_spaces_of_a_table_stay():
    assert replace_control_chars("a   b\tc") == "a   b c"


@pytest.mark.parametrize("given", [["run", "demo", "--data", "\udcff"], ["\udcff"], ["show", "ingest/\udc80"]])
def test_arguments_that_are_no_text_are_refused(given):
    with pytest.raises(SpecError, match="expected arguments in UTF-8"):
        parse(given, {})


@pytest.mark.parametrize(
    "given", [["bogus"], ["run"], ["gc", "--older-than", "\x1b[2J"], ["run", "demo", "--seeds", "-1"]]
)
def test_a_mistake_in_arguments_is_one_sentence(given, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(given)
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert is_one_clean_line(err)
    assert err.startswith("ssl-backdoor: ")


ENDS = {
    "read": ("exec {} recipes", 0, ""),
    "nobody reads": ("{} recipes | true; exit ${{PIPESTATUS[0]}}", 141, ""),
    "nobody reads errors": ("{} bogus 2>&1 | true; exit ${{PIPESTATUS[0]}}", 2, ""),
    "full": ("exec {} recipes >/dev/full", 2, "stdout cannot be written (No space left on device)"),
    "errors full": ("exec {} bogus 2>/dev/full", 2, ""),
    "closed": ("exec {} recipes >&-", 2, "stdout is closed"),
    "errors closed": ("exec {} bogus 2>&-", 2, ""),
    "all closed": ("exec {} recipes <&- >&- 2>&-", 2, ""),
    "input closed": ("exec {} recipes <&-", 0, ""),
    "gone": ("mkdir gone && cd gone && rmdir ../gone && exec {} status", 2, "the working folder was removed"),
    "few files": ("ulimit -n 32; exec {} ingest demo", 2, "this shell allows 32: raise it (ulimit -n 4096)"),
    "no proxy": ("ALL_PROXY=nonsense:// exec {} ingest demo", 2, "a proxy of ALL_PROXY"),
    "no place": (f"SSL_BACKDOOR_HOME={'x' * 300} exec {{}} status", 2, "File name too long"),
}
"""A shell's line, the exit code, and words of the one sentence on stderr."""


@pytest.mark.slow
def test_a_command_ends_in_a_sentence_whatever_its_shell_is(tmp_path):
    program = f"{sys.executable} -m flows.cli"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SSL_BACKDOOR_")}
    env = {**kept, "PYTHONPATH": str(Path(cli.__file__).parents[1]), "SSL_BACKDOOR_HOME": str(tmp_path / "home")}
    begun = {
        name: subprocess.Popen(
            ["bash", "-c", line.format(program)], cwd=tmp_path, env=env, stdout=-3, stderr=subprocess.PIPE, text=True
        )
        for name, (line, _, _) in ENDS.items()
    }
    told = {name: (process.communicate(timeout=300)[1], process.returncode) for name, process in begun.items()}
    for name, (_, code, words) in ENDS.items():
        assert told[name][1] == code, (name, told[name])
        assert words in told[name][0], (name, told[name])
        assert len(told[name][0].splitlines()) == bool(words), (name, told[name])
