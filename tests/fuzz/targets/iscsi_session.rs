//! libFuzzer's entry for [`voute_fuzz::iscsi_session`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| voute_fuzz::iscsi_session(data));
