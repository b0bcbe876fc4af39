#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| cnibox::fuzz::holds("subnet_env", data));
