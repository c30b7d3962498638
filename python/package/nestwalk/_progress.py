"""How far a run is, for whoever waits: in a notebook, on a terminal, or by a function of the user's."""

import sys


def _in_notebook():
    """Whether this is a notebook's kernel, and not a terminal, with IPython or without."""
    shell = sys.modules.get("IPython")
    shell = shell.get_ipython() if shell is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


def _line(what, done, total):
    if not total:
        return f"{what}: {done:,}"
    return f"{what}: {100 * min(done, total) / total:.0f} % of {total:,}"


class Progress:
    """Shows progress while it is entered, as ``compare``'s argument asks for it."""

    def __init__(self, asked):
        self._handle = None
        if callable(asked):
            self.callback = asked
        elif asked is False or (asked is None and not _in_notebook()):
            self.callback = None
        elif _in_notebook():
            self.callback = self._in_cell
        else:
            self.callback = self._on_terminal

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.callback == self._on_terminal:
            # The line is taken back.
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
        elif self._handle is not None:
            self._handle.update(_Html(""))

    def _on_terminal(self, what, done, total):
        sys.stderr.write(f"\r\x1b[K{_line(what, done, total)}")
        sys.stderr.flush()

    def _in_cell(self, what, done, total):
        text = _line(what, done, total)
        bar = f'<progress max="{total}" value="{min(done, total)}"></progress> ' if total else ""
        html = _Html(f"<span>{bar}{text}</span>", text)
        if self._handle is None:
            from IPython.display import display

            self._handle = display(html, display_id=True)
        else:
            self._handle.update(html)


class _Html:
    """What a notebook shows of it."""

    def __init__(self, html, text=""):
        self._html = html
        self._text = text

    def _repr_html_(self):
        return self._html

    def __repr__(self):
        return self._text
