"""Running a comparison: sources and settings in, results out."""

import os
import warnings

from . import _nestwalk
from ._progress import Progress
from ._results import Results


class Array:
    """Addresses in memory as a source, with what each access is.

    ``addresses`` and ``writes`` are whatever gives its memory away (NumPy arrays, ``array.array``, a
    ``memoryview``): 64-bit unsigned addresses, and a byte or ``bool`` for each, which is not zero for a
    store; without ``writes`` all are loads. Nothing is copied but some thousand accesses at a time, so
    what is changed during a run may be seen or not.
    """

    def __init__(self, addresses, writes=None, name=None):
        if writes is not None:
            writes = _as_bytes(writes)
        self._source = _nestwalk.Array(addresses, writes, name)

    def __len__(self):
        return len(self._source)

    def __repr__(self):
        return f"<nestwalk.Array of {len(self)} accesses>"


def _as_bytes(writes):
    """The same if it is not of one byte each, or else as plain bytes, whatever its type is called."""
    view = memoryview(writes)
    if view.itemsize != 1 or view.ndim != 1:
        return writes
    return view.cast("B") if view.c_contiguous else view.tobytes()


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop, ended a run. ``results`` are those of the accesses before."""

    def __init__(self, message, results):
        super().__init__(message)
        self.results = results


def compare(
    source=None,
    machines=None,
    *,
    profile=None,
    footprint=None,
    accesses=None,
    warmup=None,
    populate=None,
    page_size=None,
    seed=None,
    repeat=1,
    verify=None,
    vcpus=None,
    quantum=None,
    guest_memory=None,
    host_memory=None,
    low_memory=None,
    guest_paging=None,
    host_paging=None,
    guest_fragmentation=None,
    host_fragmentation=None,
    guest_bad=None,
    guest_bad_at=None,
    daemons=None,
    pcids=None,
    approximate=None,
    trace_format=None,
    page_tables=None,
    host_page_tables=None,
    walk_map=False,
    threads=None,
    progress=None,
):
    """Runs one stream of accesses on many machines, and returns what each did.

    ``source`` is what ``nestwalk compare`` takes (a recording such as ``"gcc"``, a workload, a pattern,
    the path of a trace), an array of addresses, an :class:`Array`, or a list of these, which become
    processes. ``machines`` are names, or a text with commas between them. Everything else has the
    meaning and the default of the option of that name; sizes and counts may be texts, as in
    ``footprint="64MiB"``. ``walk_map`` and ``repeat`` are as on the command line.

    ``progress`` is a function that gets what is done (a word), how much of it, and of how much, or
    ``None`` if nobody knows; ``True`` shows it, ``False`` does not, and ``None`` shows it in notebooks.

    Raises :class:`Error`, which is a ``ValueError``, with the words that ``nestwalk`` has for it. If
    something was computed before, the exception has it as ``results``.
    """
    asked = {
        "profile": profile,
        "footprint": footprint,
        "accesses": accesses,
        "warmup": warmup,
        "populate": populate,
        "page_size": page_size,
        "seed": seed,
        "verify": verify,
        "vcpus": vcpus,
        "quantum": quantum,
        "guest_memory": guest_memory,
        "host_memory": host_memory,
        "low_memory": low_memory,
        "guest_paging": guest_paging,
        "host_paging": host_paging,
        "guest_fragmentation": guest_fragmentation,
        "host_fragmentation": host_fragmentation,
        "guest_bad": guest_bad,
        "guest_bad_at": guest_bad_at,
        "daemons": daemons,
        "pcids": pcids,
        "approximate": approximate,
        "trace_format": trace_format,
        "page_tables": page_tables,
        "host_page_tables": host_page_tables,
    }
    settings = [(key, _text(value)) for key, value in asked.items() if value is not None]
    if machines is not None:
        names = machines if isinstance(machines, str) else ",".join(machines)
        settings.append(("machines", names))
    with Progress(progress) as shown:
        run = _nestwalk.run(
            _sources(source), settings, repeat, walk_map, threads, shown.callback
        )
    for note in run.notes:
        warnings.warn(note, stacklevel=2)
    return _finish(run)


def _finish(run):
    """The results, if it came to its end."""
    if run.ended is None and run.raised is None:
        return Results(run)
    results = Results(run) if run.has_counted else None
    if run.raised is not None and not isinstance(run.raised, KeyboardInterrupt):
        run.raised.results = results
        raise run.raised
    if run.raised is not None:
        raise Interrupted(run.ended, results) from None
    error = _nestwalk.Error(run.ended)
    error.results = results
    raise error


def _text(value):
    """A setting as the command line would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, dict):
        return ",".join(f"{key}={_text(of)}" for key, of in value.items())
    if isinstance(value, (list, tuple)):
        return "+".join(_text(one) for one in value)
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _sources(source):
    """Names, and arrays, in order."""
    if source is None:
        return []
    several = source if isinstance(source, (list, tuple)) else [source]
    return [_source(one) for one in several]


def _source(one):
    if isinstance(one, (str, os.PathLike)):
        return os.fspath(one)
    if not isinstance(one, Array):
        try:
            memoryview(one)
        except TypeError:
            kind = type(one).__name__
            message = f"source: a {kind} is no name, no path and no array of addresses"
            raise _nestwalk.Error(message) from None
        one = Array(one)
    return one._source
