import pytest

from ssl_backdoor.errors import DataError, StoreError, summarize_error, to_printable_line, translate_os_errors


def test_the_projects_own_words_stay_and_a_strangers_first_line_is_named():
    assert summarize_error(DataError("nothing at /data:\ncheck the path")) == "nothing at /data: check the path"
    told = summarize_error(RuntimeError("\nCUDA error\nTraceback ..."))
    assert told == "unexpected RuntimeError: CUDA error; the log of this run has the rest"
    assert "no message" in summarize_error(KeyError())


def test_what_a_worker_process_raised_is_named_instead_of_its_wrapping():
    class Wrapping(RuntimeError):
        """As Ray has it."""

        cause = MemoryError("out of memory")

    assert summarize_error(Wrapping("ray::_run() traceback")).startswith("unexpected MemoryError: out of memory")


def test_a_line_can_be_kept_and_holds_no_password():
    assert to_printable_line("a\0b\ud800\x1b[31m\n c") == "a b [31m c"
    assert to_printable_line("http://user:secret@host/x and s3://key@bucket") == "http://host/x and s3://bucket"
    assert to_printable_line("http://user:s@cret@host/x") == "http://host/x"
    assert to_printable_line("mail me@host, s3://bucket/a@b") == "mail me@host, s3://bucket/a@b"


def test_a_full_disk_and_others_are_named():
    for number, words in ((28, "disk full"), (122, "quota"), (30, "read-only"), (13, "fix its"), (5, "Input/output")):
        with pytest.raises(StoreError, match=words), translate_os_errors("the store x"):
            raise OSError(number, "Input/output error")
