//! Addresses in memory that Python objects give away by the buffer protocol.

use crate::refuse;
use nestwalk_lab::memory::{Access, Accesses, Hash};
use pyo3::buffer::{Element, PyBuffer};
use pyo3::prelude::{Bound, Py, PyAny, PyAnyMethods, PyResult, Python, pyclass, pymethods};
use pyo3::types::{PyMemoryView, PySlice, PyTypeMethods};
use std::ops::Range;
use std::sync::Arc;

/// Elements that are hashed at a time.
const CHUNK: usize = 1 << 16;

/// Addresses, and what each access is.
#[pyclass(frozen, module = "nestwalk._nestwalk")]
pub struct Array {
    memory: Arc<Memory>,
    name: Option<String>,
}

/// Views of the memory; of a piece of it they give a copy that is safe whatever else Python does.
struct Memory {
    addresses: Py<PyMemoryView>,
    writes: Option<Py<PyMemoryView>>,
    length: usize,
}

/// The memory of an object, and how many elements it has.
fn view<T: Element>(
    object: &Bound<'_, PyAny>,
    what: &str,
    right: &str,
) -> PyResult<(Py<PyMemoryView>, usize)> {
    let kind = || object.get_type().name().map_or_else(|_| "object".into(), |n| n.to_string());
    let found = || object.getattr("dtype").map_or_else(|_| kind(), |d| format!("array of {d}"));
    // Memory of no bytes need not be anywhere.
    if object.len().is_ok_and(|n| n == 0) {
        return Ok((PyMemoryView::from(object)?.unbind(), 0));
    }
    let wrong = |_| refuse(format!("{what}: {}: {right}", found()));
    let buffer = PyBuffer::<T>::get(object).map_err(wrong)?;
    if buffer.dimensions() != 1 {
        let n = buffer.dimensions();
        return Err(refuse(format!("{what}: {n} dimensions, and one is needed, as of a.ravel()")));
    }
    Ok((PyMemoryView::from(object)?.unbind(), buffer.item_count()))
}

#[pymethods]
impl Array {
    #[new]
    fn new(
        addresses: &Bound<'_, PyAny>,
        writes: Option<&Bound<'_, PyAny>>,
        name: Option<String>,
    ) -> PyResult<Self> {
        let right = "must be of 64-bit unsigned integers, as a.astype('uint64') makes it";
        let (addresses, length) = view::<u64>(addresses, "addresses", right)?;
        let right = "must be of one byte each, as w.astype(bool) makes it";
        let writes = writes.map(|w| view::<u8>(w, "writes", right)).transpose()?;
        if let Some((_, found)) = &writes
            && *found != length
        {
            return Err(refuse(format!("writes: {found} of them, and {length} addresses")));
        }
        let writes = writes.map(|w| w.0);
        Ok(Self { memory: Arc::new(Memory { addresses, writes, length }), name })
    }

    fn __len__(&self) -> usize {
        self.memory.length
    }
}

impl Array {
    /// What it is called in results, and the accesses.
    ///
    /// # Errors
    /// The memory is gone.
    pub fn accesses(&self, py: Python<'_>) -> PyResult<(String, Reader)> {
        let mut hash = Hash::default();
        let all = self.memory.length;
        let mut piece = Vec::with_capacity(CHUNK);
        for from in (0..all).step_by(CHUNK) {
            piece.clear();
            self.memory.read(py, from..all.min(from + CHUNK), &mut piece)?;
            hash.add(&piece);
        }
        Ok((hash.name(self.name.as_deref()), Reader { memory: Arc::clone(&self.memory) }))
    }
}

/// A copy of a piece of the memory.
fn copy<T: Element>(
    of: &Py<PyMemoryView>,
    py: Python<'_>,
    range: &Range<usize>,
) -> PyResult<Vec<T>> {
    let end = |n: usize| isize::try_from(n).unwrap_or(isize::MAX);
    let piece = of.bind(py).get_item(PySlice::new(py, end(range.start), end(range.end), 1))?;
    PyBuffer::<T>::get(&piece)?.to_vec(py)
}

impl Memory {
    fn read(&self, py: Python<'_>, range: Range<usize>, out: &mut Vec<Access>) -> PyResult<()> {
        if range.is_empty() {
            return Ok(());
        }
        let addresses = copy::<u64>(&self.addresses, py, &range)?.into_iter();
        match &self.writes {
            None => out.extend(addresses.map(|address| Access { address, is_store: false })),
            Some(writes) => {
                let writes = copy::<u8>(writes, py, &range)?.into_iter().map(|w| w != 0);
                let pairs = addresses.zip(writes);
                out.extend(pairs.map(|(address, is_store)| Access { address, is_store }));
            }
        }
        Ok(())
    }
}

/// Reads an array piece by piece, each with the interpreter's lock taken.
pub struct Reader {
    memory: Arc<Memory>,
}

impl Accesses for Reader {
    fn len(&self) -> u64 {
        self.memory.length as u64
    }

    fn read(&mut self, from: u64, most: usize, out: &mut Vec<Access>) -> Result<(), String> {
        let all = self.memory.length;
        let from = usize::try_from(from).unwrap_or(all).min(all);
        let to = from.saturating_add(most).min(all);
        Python::attach(|py| self.memory.read(py, from..to, out)).map_err(|e| e.to_string())
    }
}
