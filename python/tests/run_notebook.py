"""Runs the cells of a notebook in order, as a kernel would, and prints what they show.

`run_notebook.py FILE.ipynb` needs nothing but Python; `jupyter execute` is the same with a kernel of its
own, and scripts/check-long runs that.
"""

import ast
import json
import os
import sys


def run(source, names):
    """Runs a cell. What its last expression is, is shown if it is not None and no `;` follows."""
    tree = ast.parse(source)
    last = None
    if tree.body and isinstance(tree.body[-1], ast.Expr) and not source.rstrip().endswith(";"):
        last = ast.Expression(tree.body.pop().value)
    exec(compile(tree, "cell", "exec"), names)
    value = eval(compile(last, "cell", "eval"), names) if last else None
    if value is not None:
        # What a notebook would show must be there, too.
        getattr(value, "_repr_html_", lambda: "")()
        print(value)


def main(path):
    # Figures are drawn, and nobody looks at them.
    os.environ.setdefault("MPLBACKEND", "agg")
    with open(path, encoding="utf-8") as file:
        notebook = json.load(file)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        assert not cell["outputs"], "outputs are not committed; clear them"
    names = {"__name__": "__main__"}
    for cell in cells:
        source = "".join(cell["source"])
        print("".join(f">>> {line}" for line in source.splitlines(True)))
        run(source, names)
    print(f"{path}: {len(cells)} cells ran")


if __name__ == "__main__":
    main(sys.argv[1])
