//! Where a host puts the pages that it takes back.

/// A device to swap to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Device {
    /// Name on the command line.
    pub name: &'static str,
    /// What it is, and where its numbers are from.
    pub source: &'static str,
    /// From the request to the first byte of a read, in nanoseconds.
    pub read_ns: f64,
    /// Bytes that it reads in a second.
    pub read_bytes_per_s: f64,
}

impl Device {
    /// What there is.
    pub const ALL: [Self; 3] = [
        Self {
            name: "ssd",
            source: "Intel P4500, 2 TB, in Lenovo's product guide of it: random reads take 85 us, sequential ones \
                     come at 3.2 GB/s",
            read_ns: 85_000.0,
            read_bytes_per_s: 3.2e9,
        },
        Self {
            name: "disk",
            source: "derived: a disk of 7,200 turns a minute waits half a turn, 4.17 ms; with 8.5 ms to \
                     seek and 200 MB/s, as such disks are specified",
            read_ns: 12_670_000.0,
            read_bytes_per_s: 200e6,
        },
        Self {
            name: "zswap",
            source: "LZ4's README: 4,970 MB/s to decompress the Silesia corpus, version 1.9.0 on one core of a Core i7-9700K; memory in place of a \
                     device, so nothing else is waited for",
            read_ns: 0.0,
            read_bytes_per_s: 4.97e9,
        },
    ];

    /// The device of that name.
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|d| d.name == name)
    }

    /// How long it takes to read so many bytes that lie together, in nanoseconds.
    pub fn read(&self, bytes: u64) -> f64 {
        self.read_ns + bytes as f64 / self.read_bytes_per_s * 1e9
    }
}

impl Default for Device {
    fn default() -> Self {
        Self::ALL[0]
    }
}
