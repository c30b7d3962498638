//! What QEMU looks for in the library. That this test is here makes `cargo test` build the library as
//! QEMU loads it, which the tests with guests need.

use std::path::PathBuf;

#[test]
fn the_library_has_the_symbols_that_qemu_looks_for() {
    let test = std::env::current_exe().unwrap();
    let folders = test.ancestors().skip(1).take(2);
    let library: PathBuf = folders
        .map(|f| f.join("libnestwalk_qemu_plugin.so"))
        .find(|p| p.exists())
        .expect("cargo builds the library beside the tests");
    let bytes = std::fs::read(library).unwrap();
    let has = |name: &str| {
        bytes
            .windows(name.len() + 2)
            .any(|w| w[0] == 0 && w[name.len() + 1] == 0 && &w[1..=name.len()] == name.as_bytes())
    };
    for symbol in ["qemu_plugin_version", "qemu_plugin_install"] {
        assert!(has(symbol), "{symbol} is not exported");
    }
    // Found when QEMU loads the library, so no more of QEMU is needed to build it.
    assert!(has("qemu_plugin_register_vcpu_tb_trans_cb"));
}
