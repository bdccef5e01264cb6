//! The operational parameters of a session and how each key is settled (RFC 7143 §13).

use crate::pdu::Digests;
use crate::text;

/// Longest data segment that we receive in full-feature phase, bytes.
pub(crate) const RECEIVE_LENGTH_MAX: u32 = 262_144;
/// Longest data segment in login, bytes: the default that holds until another is declared.
pub(crate) const LOGIN_LENGTH_MAX: u32 = 8192;
/// Most unsolicited data per command that we agree to, bytes.
pub(crate) const FIRST_BURST_MAX: u32 = 131_072;
/// Longest sequence of data PDUs that we agree to, bytes.
pub(crate) const BURST_MAX: u32 = 1 << 20;
/// Most transfers asked for at once for one command.
pub(crate) const OUTSTANDING_R2T_MAX: u16 = 4;

/// Which digest an initiator offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum DigestChoice {
    /// `None`.
    #[default]
    None,
    /// `CRC32C`.
    Crc32c,
}

/// What a session runs by. Starts at RFC 7143's defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// HeaderDigest.
    pub header_digest: DigestChoice,
    /// DataDigest.
    pub data_digest: DigestChoice,
    /// The peer's MaxRecvDataSegmentLength, bytes.
    pub peer_receive_length: u32,
    /// MaxBurstLength, bytes.
    pub max_burst: u32,
    /// FirstBurstLength, bytes, at most `max_burst`.
    pub first_burst: u32,
    /// InitialR2T: no unsolicited data PDUs.
    pub initial_r2t: bool,
    /// ImmediateData.
    pub immediate_data: bool,
    /// MaxOutstandingR2T.
    pub max_outstanding_r2t: u16,
    /// DefaultTime2Wait, seconds.
    pub time_to_wait: u16,
    /// DefaultTime2Retain, seconds.
    pub time_to_retain: u16,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            header_digest: DigestChoice::None,
            data_digest: DigestChoice::None,
            peer_receive_length: 8192,
            max_burst: 262_144,
            first_burst: 65_536,
            initial_r2t: true,
            immediate_data: true,
            max_outstanding_r2t: 1,
            time_to_wait: 2,
            time_to_retain: 20,
        }
    }
}

/// What to answer to an offered key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// This value.
    Value(String),
    /// Nothing: the key declares.
    Silent,
    /// The key is not an operational one.
    NotOperational,
}

impl Parameters {
    /// The digests in full-feature phase.
    pub(crate) fn digests(&self) -> Digests {
        Digests {
            header: self.header_digest == DigestChoice::Crc32c,
            data: self.data_digest == DigestChoice::Crc32c,
        }
    }

    /// Settles one key that an initiator offers, as a target.
    pub(crate) fn settle(&mut self, key: &str, value: &str) -> Answer {
        match key {
            "HeaderDigest" => settle_digest(&mut self.header_digest, value),
            "DataDigest" => settle_digest(&mut self.data_digest, value),
            "MaxRecvDataSegmentLength" => match within(value, 512, 0x00ff_ffff) {
                Some(length) => {
                    self.peer_receive_length = length;
                    Answer::Silent
                }
                None => reject(),
            },
            "MaxBurstLength" => {
                settle_minimum(&mut self.max_burst, value, 512, 0x00ff_ffff, BURST_MAX)
            }
            "FirstBurstLength" => {
                settle_minimum(&mut self.first_burst, value, 512, 0x00ff_ffff, FIRST_BURST_MAX)
            }
            "MaxOutstandingR2T" => {
                let mut count = u32::from(self.max_outstanding_r2t);
                let answer =
                    settle_minimum(&mut count, value, 1, 65535, u32::from(OUTSTANDING_R2T_MAX));
                self.max_outstanding_r2t = count as u16;
                answer
            }
            // OR: we do not need R2T first.
            "InitialR2T" => settle_boolean(&mut self.initial_r2t, value, |offer| offer),
            // AND: we take immediate data.
            "ImmediateData" => settle_boolean(&mut self.immediate_data, value, |offer| offer),
            // OR, and we need both: only in-order data is received.
            "DataPDUInOrder" | "DataSequenceInOrder" => settle_boolean(&mut true, value, |_| true),
            "MaxConnections" => settle_minimum(&mut 1, value, 1, 65535, 1),
            "ErrorRecoveryLevel" => settle_minimum(&mut 0, value, 0, 2, 0),
            // Maximum of both; ours is the default.
            "DefaultTime2Wait" => match within(value, 0, 3600) {
                Some(seconds) => {
                    self.time_to_wait = seconds.max(2) as u16;
                    Answer::Value(self.time_to_wait.to_string())
                }
                None => reject(),
            },
            "DefaultTime2Retain" => {
                let mut seconds = u32::from(self.time_to_retain);
                let answer = settle_minimum(&mut seconds, value, 0, 3600, 20);
                self.time_to_retain = seconds as u16;
                answer
            }
            "IFMarker" | "OFMarker" => Answer::Value("No".into()),
            "IFMarkInt" | "OFMarkInt" => Answer::Value("Irrelevant".into()),
            "TaskReporting" => match text::choose(value, |offer| offer == "RFC3720") {
                Some(offer) => Answer::Value(offer.into()),
                None => reject(),
            },
            "iSCSIProtocolLevel" => settle_minimum(&mut 1, value, 0, 31, 1),
            _ => Answer::NotOperational,
        }
    }

    /// What holds once everything is settled: the first burst never exceeds a burst (§13.14).
    pub(crate) fn close(&mut self) {
        self.first_burst = self.first_burst.min(self.max_burst).min(FIRST_BURST_MAX);
    }
}

fn reject() -> Answer {
    Answer::Value("Reject".into())
}

fn within(value: &str, least: u32, most: u32) -> Option<u32> {
    let number = u32::try_from(text::number(value)?).ok()?;
    (least..=most).contains(&number).then_some(number)
}

fn settle_minimum(current: &mut u32, value: &str, least: u32, most: u32, ours: u32) -> Answer {
    match within(value, least, most) {
        Some(offer) => {
            *current = offer.min(ours);
            Answer::Value(current.to_string())
        }
        None => reject(),
    }
}

fn settle_boolean(current: &mut bool, value: &str, decide: impl Fn(bool) -> bool) -> Answer {
    let offer = match value {
        "Yes" => true,
        "No" => false,
        _ => return reject(),
    };
    *current = decide(offer);
    Answer::Value(if *current { "Yes" } else { "No" }.into())
}

fn settle_digest(current: &mut DigestChoice, value: &str) -> Answer {
    match text::choose(value, |offer| offer == "None" || offer == "CRC32C") {
        Some(offer) => {
            *current = if offer == "CRC32C" { DigestChoice::Crc32c } else { DigestChoice::None };
            Answer::Value(offer.into())
        }
        None => reject(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_settled_as_its_clause_says() {
        let table = [
            ("HeaderDigest", "CRC32C,None", Some("CRC32C")),
            ("HeaderDigest", "None,CRC32C", Some("None")),
            ("DataDigest", "SHA,CRC32C", Some("CRC32C")),
            ("DataDigest", "SHA", Some("Reject")),
            ("MaxBurstLength", "16776192", Some("1048576")),
            ("MaxBurstLength", "4096", Some("4096")),
            ("MaxBurstLength", "511", Some("Reject")),
            ("FirstBurstLength", "262144", Some("131072")),
            ("FirstBurstLength", "0x1000", Some("4096")),
            ("MaxOutstandingR2T", "0", Some("Reject")),
            ("MaxOutstandingR2T", "16", Some("4")),
            ("InitialR2T", "No", Some("No")),
            ("InitialR2T", "Yes", Some("Yes")),
            ("InitialR2T", "maybe", Some("Reject")),
            ("ImmediateData", "No", Some("No")),
            ("ImmediateData", "Yes", Some("Yes")),
            ("DataPDUInOrder", "No", Some("Yes")),
            ("DataSequenceInOrder", "No", Some("Yes")),
            ("MaxConnections", "8", Some("1")),
            ("ErrorRecoveryLevel", "2", Some("0")),
            ("ErrorRecoveryLevel", "3", Some("Reject")),
            ("DefaultTime2Wait", "0", Some("2")),
            ("DefaultTime2Wait", "5", Some("5")),
            ("DefaultTime2Retain", "0", Some("0")),
            ("DefaultTime2Retain", "60", Some("20")),
            ("IFMarker", "No", Some("No")),
            ("OFMarker", "Yes", Some("No")),
            ("OFMarkInt", "2048~8192", Some("Irrelevant")),
            ("TaskReporting", "FastAbort,RFC3720", Some("RFC3720")),
            ("iSCSIProtocolLevel", "2", Some("1")),
            ("MaxRecvDataSegmentLength", "262144", None),
            ("MaxRecvDataSegmentLength", "100", Some("Reject")),
        ];
        for (key, value, expected) in table {
            let expected = expected.map_or(Answer::Silent, |value| Answer::Value(value.into()));
            assert_eq!(Parameters::default().settle(key, value), expected, "{key}={value}");
        }
        assert_eq!(Parameters::default().settle("X-com.example.key", "1"), Answer::NotOperational);
    }

    #[test]
    fn the_first_burst_never_exceeds_a_burst() {
        let mut parameters = Parameters::default();
        parameters.settle("MaxBurstLength", "1024");
        parameters.settle("FirstBurstLength", "65536");
        parameters.close();
        assert_eq!(parameters.first_burst, 1024);
    }
}
