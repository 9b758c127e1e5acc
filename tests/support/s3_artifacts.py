"""What tests of the S3 store keep in it, and what they then see there behind its back."""

import numpy as np

from tests.support.store_commits import KEY


def make_source(folder, text="hello", large_bytes=0):
    """A folder of files to commit; ``large.bin`` is uploaded in parts of 8 MiB."""
    (folder / "shards").mkdir(parents=True)
    (folder / "samples.txt").write_text(text)
    (folder / "shards" / "empty.tar").write_bytes(b"")
    if large_bytes:
        (folder / "large.bin").write_bytes(np.random.default_rng(0).bytes(large_bytes))
    return folder


def commit(store, source):
    """Keep ``source`` as ingest/KEY."""
    about = {"spec": {"kind": "x"}, "inputs": {"data": "d"}, "summary": {"n": 1}, "seconds": 2.0}
    return store.commit("ingest", KEY, source, **about, adopts=True)


def artifact_keys(server, prefix):
    """Keys of the artifact's objects, relative to it."""
    start = f"{prefix}/ingest/{KEY}/"
    return [key.removeprefix(start) for key in server.keys(start)]
