"""Runs ``ssl_backdoor/example.ipynb`` and keeps what its cells print and draw: python -m tests.golden.make_notebook.

A notebook is JSON; running one needs no more than what is here.
"""

import ast
import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import ssl_backdoor

NOTEBOOK = Path(ssl_backdoor.__file__).with_name("example.ipynb")
_DPI = 60


def read() -> dict[str, Any]:
    """The notebook."""
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def run(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with the outputs of its cells, run one after the other inside ``folder``."""
    import matplotlib

    matplotlib.use("agg")
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    with contextlib.chdir(folder):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                number = 1 + sum(one["cell_type"] == "code" for one in cells)
                cell = {**cell, "execution_count": number, "outputs": _outputs("".join(cell["source"]), names, number)}
            cells.append(cell)
    return {**notebook, "cells": cells}


def _outputs(source: str, names: dict[str, Any], number: int) -> list[dict[str, Any]]:
    from matplotlib import pyplot

    tree, shown, printed = ast.parse(source), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, f"cell {number}", "exec"), names)
        if last is not None:
            shown = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if text := printed.getvalue():
        outputs.append({"output_type": "stream", "name": "stdout", "text": text.splitlines(keepends=True)})
    for figure in map(pyplot.figure, pyplot.get_fignums()):
        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=_DPI, bbox_inches="tight", metadata={"Software": None})
        picture = {"image/png": base64.b64encode(drawn.getvalue()).decode()}
        outputs.append({"output_type": "display_data", "data": picture, "metadata": {}})
    pyplot.close("all")
    if shown is not None and not source.rstrip().endswith(";"):
        data = {"text/plain": repr(shown).splitlines(keepends=True)}
        if hasattr(shown, "to_html"):
            data["text/html"] = shown.to_html().splitlines(keepends=True)
        outputs.append({"output_type": "execute_result", "execution_count": number, "data": data, "metadata": {}})
    return outputs


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        NOTEBOOK.write_text(json.dumps(run(read(), Path(folder)), indent=1) + "\n", encoding="utf-8")
