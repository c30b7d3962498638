"""What came of a comparison."""

import copy
import html
import json
import os


def _flat(value, path=""):
    """Numbers and words of an object by their dotted paths, as the columns of the CSV are named."""
    if isinstance(value, dict):
        for key, of in value.items():
            yield from _flat(of, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for at, of in enumerate(value):
            yield from _flat(of, f"{path}.{at}")
    elif value is not None:
        yield path, value


def _number(text):
    """The number that a cell of the long form is; None if it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def _bytes(n):
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if n < 1024 or unit == "TiB":
            return f"{n:.1f} {unit}" if unit != "bytes" else f"{n} {unit}"
        n /= 1024
    return ""


class Results:
    """Results of ``compare``. In a notebook they show themselves as a table with a verdict."""

    def __init__(self, run):
        self._run = run
        self._all = json.loads(run.json())

    def to_dict(self):
        """Everything, as ``nestwalk compare --format json`` prints it."""
        return copy.deepcopy(self._all)

    def to_json(self):
        """The same as text, which ``nestwalk report`` reads from a file."""
        return json.dumps(self._all, indent=2)

    def save(self, folder):
        """Writes ``results.json`` and ``config.toml`` into a folder, as ``compare --output`` does:
        ``nestwalk report`` draws the one, ``nestwalk run`` repeats the other."""
        os.makedirs(folder, exist_ok=True)
        for name, text in (("config.toml", self.config), ("results.json", self.to_json() + "\n")):
            with open(os.path.join(folder, name), "w", encoding="utf-8") as file:
                file.write(text)

    @property
    def config(self):
        """The experiment with nothing left open, in TOML: ``nestwalk run`` repeats it."""
        return self._run.config()

    @property
    def complete(self):
        """Whether the run came to its end."""
        return self._all["complete"]

    @property
    def machines(self):
        """An object per machine, controls first: ``results.machines[0]["walks"]``."""
        return self.to_dict()["machines"]

    @property
    def verdict(self):
        """What follows from the counts, in sentences; empty if there is nothing to decide between."""
        verdict = self._all["verdict"]
        return " ".join(verdict["sentences"]) if verdict else ""

    def rows(self):
        """A row per seed, machine and number, always with the same columns, as ``compare --long`` has
        them: what many runs gave is one table by putting them behind each other."""
        return json.loads(self._run.rows())

    def _columns(self):
        """The long form by columns: ``value`` is a number, or None where ``text`` is none."""
        rows = self.rows()
        names = list(rows[0]) if rows else []
        columns = {name: [row[name] for row in rows] for name in names}
        if rows:
            text = columns["value"]
            columns["value"] = [_number(value) for value in text]
            columns["text"] = text
        return columns

    def _wide(self):
        """A row per machine by columns."""
        rows = [dict(_flat(machine)) for machine in self._all["machines"]]
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names}

    def to_pandas(self, long=False):
        """A ``pandas.DataFrame``: a row per machine, or with ``long`` a row per machine and number."""
        import pandas

        return pandas.DataFrame(self._columns() if long else self._wide())

    def to_polars(self, long=False):
        """The same as a ``polars.DataFrame``."""
        import polars

        columns = self._columns() if long else self._wide()
        return polars.DataFrame(columns, strict=False, infer_schema_length=None)

    def _table(self):
        """Titles and rows of the table that is shown, as ``compare`` prints it."""
        verdict = self._all["verdict"] or {}
        times = verdict.get("run_times", {})
        titles = ["machine", "run time", "walks/1000 instr.", "transl. % time", "VMM % time"]
        rows = []
        for m in self._all["machines"]:
            ideal, total = m["scheme"] == "ideal", m["total_cycles"]
            walks = None if ideal or not m["instructions"] else 1000 * m["walks"] / m["instructions"]
            rest = total - m["vmm_cycles"] - m["ideal_cycles"]
            transl = 100 * rest / total if total and m["ideal_cycles"] and not ideal else None
            vmm = 100 * m["vmm_cycles"] / total if total and m["vmm_cycles"] else None
            tables = sum(m["page_table_bytes"].values())
            time = times.get(m["name"])
            cells = [(time, ".3f"), (walks, ".2f"), (transl, ".1f"), (vmm, ".1f")]
            cells = ["-" if value is None else format(value, how) for value, how in cells]
            rows.append([m["name"], *cells, _bytes(tables) if tables else "-"])
        return [*titles, "table memory"], rows

    def __repr__(self):
        titles, rows = self._table()
        widths = [max(len(row[at]) for row in [titles, *rows]) for at in range(len(titles))]
        lines = [
            "  ".join(
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths))
            )
            for row in [titles, *rows]
        ]
        return "\n".join([f"{self._all['source']}: {self._all['description']}", *lines, self.verdict])

    def _repr_html_(self):
        titles, rows = self._table()
        best = (self._all["verdict"] or {}).get("fastest")

        def cells(row, tag):
            left = 'style="text-align:left"'
            return "".join(
                f"<{tag} {'' if at else left}>{html.escape(cell)}</{tag}>" for at, cell in enumerate(row)
            )

        body = "".join(
            f"<tr{' style=font-weight:bold' if row[0] == best else ''}>{cells(row, 'td')}</tr>"
            for row in rows
        )
        head = html.escape(f"{self._all['source']}: {self._all['description']}")
        return (
            f"<div><p>{head}</p><table><thead><tr>{cells(titles, 'th')}</tr></thead>"
            f"<tbody>{body}</tbody></table><p>{html.escape(self.verdict)}</p></div>"
        )
