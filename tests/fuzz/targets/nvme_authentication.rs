//! libFuzzer's entry for [`voute_fuzz::nvme_authentication`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voute_fuzz::nvme_authentication(data));
