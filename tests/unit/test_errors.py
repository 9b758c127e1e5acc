from ssl_backdoor.errors import DataError, printed, sentence


def test_the_projects_own_words_stay_and_a_strangers_first_line_is_named():
    assert sentence(DataError("nothing at /data:\ncheck the path")) == "nothing at /data: check the path"
    told = sentence(RuntimeError("\nCUDA error\nTraceback ..."))
    assert told == "unexpected RuntimeError: CUDA error; the log of this run has the rest"
    assert "no message" in sentence(KeyError())


def test_what_a_worker_process_raised_is_named_instead_of_its_wrapping():
    class Wrapping(RuntimeError):
        """As Ray has it."""

        cause = MemoryError("out of memory")

    assert sentence(Wrapping("ray::_run() traceback")).startswith("unexpected MemoryError: out of memory")


def test_a_line_can_be_kept_and_holds_no_password():
    assert printed("a\0b\ud800\x1b[31m\n c") == "a b [31m c"
    assert printed("http://user:secret@host/x and s3://key@bucket") == "http://host/x and s3://bucket"
    assert printed("http://user:s@cret@host/x") == "http://host/x"
    assert printed("mail me@host, s3://bucket/a@b") == "mail me@host, s3://bucket/a@b"
