#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| nestwalk_source::fuzzing::formats(data));
