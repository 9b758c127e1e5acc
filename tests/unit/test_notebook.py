"""The notebook runs as it is shown, and the page of the public functions is that of their docstrings."""

from tests.golden import make_api, make_notebook


def test_the_notebook_runs_and_shows_what_it_kept(tmp_path):
    kept = make_notebook.read()
    ran = make_notebook.run(kept, tmp_path)
    for before, after in zip(kept["cells"], ran["cells"], strict=True):
        if before["cell_type"] == "code":
            kinds = [[sorted(one.get("data", {})) for one in cell["outputs"]] for cell in (before, after)]
            assert kinds[0] == kinds[1], "".join(before["source"])
            assert before["execution_count"] == after["execution_count"]
    pictures = [one for cell in ran["cells"] for one in cell.get("outputs", []) if "image/png" in one.get("data", {})]
    assert len(pictures) == 4
    assert ran["cells"][-1]["outputs"][0]["data"]["text/plain"] == ["(True, False, ('bright', 'dark'))"]


def test_the_api_page_is_that_of_the_docstrings():
    assert make_api.PAGE.read_text(encoding="utf-8") == make_api.page(), "run python -m tests.golden.make_api"
