"""Events as lines, as JSON, and through another process."""

import json
import logging
from datetime import datetime, timedelta

import pytest

from ssl_backdoor.events import LOG, log_context, log_event
from tasks.logs import JsonFormatter, LineFormatter, RelayHandler, attach_handlers, replay, root_logger_as_json


class _Kept(logging.Handler):
    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


IDS = {"flow_run_id": "run-1", "stage": "train", "key": "4f2a90c1b2d3e4f5", "title": "train suspect"}


def told_as(formatter: logging.Formatter, message: str, **fields: object) -> str:
    kept = _Kept(formatter)
    with attach_handlers(kept), log_context(**IDS):
        log_event("finished", message, **fields)
    (line,) = kept.lines
    return line


def test_json_has_the_ids_the_fields_and_utc() -> None:
    line = told_as(JsonFormatter(), "finished after 93.1 s\nand more", seconds=93.125)
    assert "\n" not in line
    told = json.loads(line)
    moment = datetime.fromisoformat(told.pop("time"))
    assert moment.utcoffset() == timedelta(0)
    assert abs((datetime.now(moment.tzinfo) - moment).total_seconds()) < 5
    assert told == {
        "level": "info",
        "event": "finished",
        **IDS,
        "seconds": 93.125,
        "message": "finished after 93.1 s and more",
    }


def test_a_line_names_the_artifact_as_the_command_show_takes_it() -> None:
    assert told_as(LineFormatter(has_time=False), "finished\nafter 93.1 s") == (
        "train suspect (train/4f2a90c1b2d3): finished after 93.1 s"
    )
    assert told_as(LineFormatter(), "x")[2::3][:2] == "::"


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_secrets_do_not_appear(formatter: logging.Formatter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-8c1f")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "canary-8c1f-77aa")
    line = told_as(formatter, "refused canary-8c1f, canary-8c1f-77aa at http://me:can@ry-0123@127.0.0.1:5000/x")
    assert "canary" not in line
    assert "refused ***, *** at http://***@127.0.0.1:5000/x" in line


@pytest.mark.parametrize("formatter", [LineFormatter(), JsonFormatter()])
def test_a_traceback_is_told_without_secrets(formatter: logging.Formatter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "canary-9b9b")
    kept = _Kept(formatter)
    with attach_handlers(kept):
        try:
            raise RuntimeError("wrong password canary-9b9b")
        except RuntimeError:
            LOG.exception("it broke")
    (line,) = kept.lines
    assert "RuntimeError: wrong password ***" in line
    assert "canary" not in line


def test_what_another_process_told_is_told_here_as_it_was() -> None:
    there, here, direct = [], _Kept(JsonFormatter()), _Kept(JsonFormatter())
    with attach_handlers(RelayHandler(there.append), direct), log_context(**IDS, host="node-3"):
        log_event("begins", "100% of it begins", pid=7)
        LOG.warning("plain %s", "words")
    with attach_handlers(here):
        for record in there:
            replay(json.loads(json.dumps(record)))
    assert here.lines == direct.lines
    assert [json.loads(line)["host"] for line in here.lines] == ["node-3", "node-3"]


def test_nobody_who_listens_for_warnings_alone_is_told_more() -> None:
    there: list[dict[str, object]] = []
    with attach_handlers(RelayHandler(there.append)):
        log_event("begins", "begins")
    kept = _Kept(LineFormatter())
    with attach_handlers(kept):
        LOG.setLevel(logging.WARNING)
        replay(there[0])
    assert kept.lines == []
    assert LOG.level == logging.NOTSET


def test_outside_the_block_all_is_as_before() -> None:
    before = list(LOG.handlers)
    with attach_handlers(_Kept(LineFormatter())):
        assert (len(LOG.handlers), LOG.level, LOG.propagate) == (len(before) + 1, logging.INFO, False)
    assert (list(LOG.handlers), LOG.level, LOG.propagate) == (before, logging.NOTSET, True)


def test_what_other_libraries_log_has_the_ids_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SSL_BACKDOOR_LOG", "json")
    before = list(logging.getLogger().handlers)
    with log_context(flow_run_id="run-1"), root_logger_as_json():
        logging.getLogger("another.library").warning("it is %s", "late")
    told = json.loads(capsys.readouterr().err)
    assert (told["level"], told["flow_run_id"], told["message"]) == ("warning", "run-1", "it is late")
    assert logging.getLogger().handlers == before
