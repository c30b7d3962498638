"""A laboratory for memory virtualization: one stream of memory accesses, many ways to translate it.

>>> import nestwalk
>>> results = nestwalk.compare("gups", machines=["native", "shadow", "nested"], footprint="64MiB")
>>> results.to_pandas()[["name", "overhead_percent"]]
"""

from ._compare import Array, Interrupted, compare
from ._nestwalk import Error, version
from ._results import Results

__version__ = version()
# Results of the accesses before, where there are any.
Error.results = None
__all__ = ["Array", "Error", "Interrupted", "Results", "compare"]
