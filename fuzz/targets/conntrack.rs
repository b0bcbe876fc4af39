#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cnibox::fuzz::holds("conntrack", data));
