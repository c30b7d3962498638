//! What the QEMU plugin and the simulator have in common.
