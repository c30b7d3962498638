//! The workloads, one file each.

use crate::Workload;

mod bt;
mod btree;
mod compiler;
mod forkstorm;
mod graph500;
mod gups;
mod hashjoin;
mod kvstore;
mod pagerank;
mod seasons;
mod stream;
mod svm;
mod xsbench;

/// Every workload, by name in alphabetical order.
pub static WORKLOADS: &[Workload] = &[
    bt::WORKLOAD,
    btree::WORKLOAD,
    compiler::WORKLOAD,
    forkstorm::WORKLOAD,
    graph500::WORKLOAD,
    gups::WORKLOAD,
    hashjoin::WORKLOAD,
    kvstore::WORKLOAD,
    pagerank::WORKLOAD,
    seasons::WORKLOAD,
    stream::WORKLOAD,
    svm::WORKLOAD,
    xsbench::WORKLOAD,
];
