//! nestwalk's laboratory for Python: the module `nestwalk._nestwalk`, which the Python files of the
//! package wrap.
//!
//! It runs experiments of the lab with the interpreter's lock released, and takes the lock again now and
//! then for progress, signals, and pieces of arrays.

mod array;
mod run;

use nestwalk_lab::{VERSION, describe};
use pyo3::PyErr;
use pyo3::create_exception;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::{
    Bound, PyModule, PyModuleMethods, PyResult, pyfunction, pymodule, wrap_pyfunction,
};
use std::fmt::Display;

create_exception!(
    nestwalk,
    Error,
    PyValueError,
    "What nestwalk cannot do, in its words. `results` are those of the accesses before, if there are any."
);

/// The exception that says what an error and its causes say.
fn error(error: &nestwalk_lab::Error) -> PyErr {
    Error::new_err(describe(error))
}

/// The exception with this text.
fn refuse(message: impl Display) -> PyErr {
    Error::new_err(message.to_string())
}

/// Version of nestwalk.
#[pyfunction]
const fn version() -> &'static str {
    VERSION
}

#[pymodule]
fn _nestwalk(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("Error", module.py().get_type::<Error>())?;
    module.add_class::<array::Array>()?;
    module.add_class::<run::Run>()?;
    module.add_function(wrap_pyfunction!(version, module)?)?;
    module.add_function(wrap_pyfunction!(run::run, module)?)
}
