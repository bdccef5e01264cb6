//! The initiator's login: security with CHAP if asked for, then all operational keys at once.

use super::{InitiatorConfig, InitiatorError};
use crate::chap::{self, Algorithm};
use crate::negotiation::{DigestChoice, Parameters};
use crate::pdu::{self, Digests, Header, opcode};
use crate::text;

/// Most login answers: a bound against a target that never comes to an end.
const ANSWERS_MAX: u32 = 32;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    /// AuthMethod is offered.
    Method,
    /// CHAP_A is offered.
    Algorithm,
    /// Our response, and challenge if mutual, are out.
    Response,
    /// The operational keys are out.
    Operational,
}

/// The login under way.
pub(super) struct Login {
    config: InitiatorConfig,
    step: Step,
    answers: u32,
    algorithm: Algorithm,
    our_challenge: [u8; chap::CHALLENGE_LENGTH],
    text: Vec<u8>,
    parameters: Parameters,
}

/// A finished login.
pub(super) struct Entered {
    pub(super) parameters: Parameters,
    pub(super) command_number: u32,
    pub(super) max_command: u32,
    pub(super) expected_status: u32,
}

impl Login {
    pub(super) fn new(config: InitiatorConfig) -> Self {
        let our_challenge = chap::challenge(&config.seed, 0);
        let step = if config.chap.is_some() { Step::Method } else { Step::Operational };
        Login {
            config,
            step,
            answers: 0,
            algorithm: Algorithm::Sha256,
            our_challenge,
            text: Vec::new(),
            parameters: Parameters::default(),
        }
    }

    /// Sends the first request.
    pub(super) fn begin(&mut self, output: &mut Vec<u8>) {
        let mut keys = Vec::new();
        text::push(&mut keys, "InitiatorName", &self.config.name);
        match &self.config.target {
            Some(target) => {
                text::push(&mut keys, "SessionType", "Normal");
                text::push(&mut keys, "TargetName", target);
            }
            None => text::push(&mut keys, "SessionType", "Discovery"),
        }
        match self.step {
            Step::Method => text::push(&mut keys, "AuthMethod", "CHAP"),
            Step::Algorithm | Step::Response | Step::Operational => {
                self.push_operational(&mut keys)
            }
        }
        self.send(&keys, 0, output);
    }

    fn push_operational(&self, keys: &mut Vec<u8>) {
        let digest = |choice| match choice {
            DigestChoice::None => "None",
            DigestChoice::Crc32c => "CRC32C,None",
        };
        let yes = |holds| if holds { "Yes" } else { "No" };
        text::push(keys, "HeaderDigest", digest(self.config.header_digest));
        text::push(keys, "DataDigest", digest(self.config.data_digest));
        text::push(keys, "MaxRecvDataSegmentLength", &self.config.receive_length.to_string());
        if self.config.target.is_some() {
            text::push(keys, "InitialR2T", yes(self.config.initial_r2t));
            text::push(keys, "ImmediateData", yes(self.config.immediate_data));
            text::push(keys, "MaxBurstLength", "16776192");
            text::push(keys, "FirstBurstLength", "262144");
            text::push(keys, "MaxOutstandingR2T", "4");
            text::push(keys, "MaxConnections", "1");
            text::push(keys, "DataPDUInOrder", "Yes");
            text::push(keys, "DataSequenceInOrder", "Yes");
        }
        text::push(keys, "ErrorRecoveryLevel", "0");
        text::push(keys, "DefaultTime2Wait", "2");
        text::push(keys, "DefaultTime2Retain", "0");
    }

    fn send(&mut self, keys: &[u8], expected_status: u32, output: &mut Vec<u8>) {
        // Current stage, next stage, transit.
        let flags = match self.step {
            Step::Method | Step::Algorithm => 0,
            Step::Response => 0x80 | 1,
            Step::Operational => 0x80 | 1 << 2 | 3,
        };
        let mut header = Header::new(opcode::LOGIN);
        header.set_immediate().set_flags(flags).set_task_tag(0);
        header.0[8..14].copy_from_slice(&self.config.isid);
        header.set_u32(24, 1).set_u32(28, expected_status);
        pdu::append(output, &mut header, keys, Digests::default());
    }

    /// Takes an answer; the session's numbers once the login is over.
    pub(super) fn receive(
        &mut self,
        header: &Header,
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<Option<Entered>, InitiatorError> {
        if header.opcode() != opcode::LOGIN_RESPONSE {
            return Err(InitiatorError::Protocol("not a login answer"));
        }
        self.answers += 1;
        if self.answers > ANSWERS_MAX {
            return Err(InitiatorError::Protocol("an endless login"));
        }
        let (class, detail) = (header.0[36], header.0[37]);
        if class != 0 {
            return Err(InitiatorError::LoginRefused { class, detail });
        }
        let next_status = header.u32_at(24).wrapping_add(1);
        self.text.extend_from_slice(data);
        if header.text_continues() {
            self.send(&[], next_status, output);
            return Ok(None);
        }
        let all = std::mem::take(&mut self.text);
        let pairs =
            text::parse(&all).map_err(|_| InitiatorError::Protocol("login text is malformed"))?;
        let mut keys = Vec::new();
        let transits = header.is_final();
        self.step = match self.step {
            Step::Method => {
                expect(&pairs, "AuthMethod", "CHAP")?;
                text::push(&mut keys, "CHAP_A", "8,7,6,5");
                Step::Algorithm
            }
            Step::Algorithm => {
                self.respond(&pairs, &mut keys)?;
                Step::Response
            }
            Step::Response => {
                self.check_target(&pairs)?;
                if !transits {
                    return Err(InitiatorError::Protocol("the target stays in the security stage"));
                }
                self.push_operational(&mut keys);
                Step::Operational
            }
            Step::Operational => {
                pairs.iter().for_each(|(key, value)| self.adopt(key, value));
                if transits && header.flags() & 3 == 3 {
                    self.parameters.close();
                    return Ok(Some(Entered {
                        parameters: self.parameters.clone(),
                        command_number: header.u32_at(28),
                        max_command: header.u32_at(32),
                        expected_status: next_status,
                    }));
                }
                Step::Operational
            }
        };
        self.send(&keys, next_status, output);
        Ok(None)
    }

    fn respond(
        &mut self,
        pairs: &[(&str, &str)],
        keys: &mut Vec<u8>,
    ) -> Result<(), InitiatorError> {
        let malformed = InitiatorError::Protocol("the CHAP challenge is malformed");
        let Some(chap) = &self.config.chap else { return Err(malformed) };
        let algorithm =
            find(pairs, "CHAP_A").and_then(Algorithm::from_number).ok_or(malformed.clone())?;
        let identifier = find(pairs, "CHAP_I")
            .and_then(text::number)
            .and_then(|number| u8::try_from(number).ok());
        let identifier = identifier.ok_or(malformed.clone())?;
        let challenge = find(pairs, "CHAP_C").and_then(chap::from_text).ok_or(malformed)?;
        if challenge == self.our_challenge {
            return Err(InitiatorError::TargetNotProved);
        }
        self.algorithm = algorithm;
        let response = chap::response(algorithm, identifier, &chap.host.secret, &challenge);
        text::push(keys, "CHAP_N", &chap.host.name);
        text::push(keys, "CHAP_R", &chap::to_hex(&response));
        if chap.target.is_some() {
            text::push(keys, "CHAP_I", &self.our_challenge[0].to_string());
            text::push(keys, "CHAP_C", &chap::to_hex(&self.our_challenge));
        }
        Ok(())
    }

    fn check_target(&self, pairs: &[(&str, &str)]) -> Result<(), InitiatorError> {
        let Some(target) = self.config.chap.as_ref().and_then(|chap| chap.target.as_ref()) else {
            return Ok(());
        };
        let identifier = self.our_challenge[0];
        let expected =
            chap::response(self.algorithm, identifier, &target.secret, &self.our_challenge);
        let given = find(pairs, "CHAP_R").and_then(chap::from_text).unwrap_or_default();
        let name = find(pairs, "CHAP_N").unwrap_or_default();
        let holds =
            chap::equal(&expected, &given) & chap::equal(name.as_bytes(), target.name.as_bytes());
        if holds { Ok(()) } else { Err(InitiatorError::TargetNotProved) }
    }

    /// Takes over what the target settled on, as far as it is well-formed.
    fn adopt(&mut self, key: &str, value: &str) {
        let parameters = &mut self.parameters;
        let number = text::number(value).and_then(|number| u32::try_from(number).ok());
        match (key, number) {
            ("HeaderDigest", _) => parameters.header_digest = digest(value),
            ("DataDigest", _) => parameters.data_digest = digest(value),
            ("InitialR2T", _) => parameters.initial_r2t = value != "No",
            ("ImmediateData", _) => parameters.immediate_data = value == "Yes",
            ("MaxRecvDataSegmentLength", Some(length @ 512..)) => {
                parameters.peer_receive_length = length
            }
            ("MaxBurstLength", Some(length @ 512..)) => parameters.max_burst = length,
            ("FirstBurstLength", Some(length @ 512..)) => parameters.first_burst = length,
            ("MaxOutstandingR2T", Some(count @ 1..=65535)) => {
                parameters.max_outstanding_r2t = count as u16
            }
            _ => {}
        }
    }
}

fn digest(value: &str) -> DigestChoice {
    if value == "CRC32C" { DigestChoice::Crc32c } else { DigestChoice::None }
}

fn find<'a>(pairs: &[(&'a str, &'a str)], wanted: &str) -> Option<&'a str> {
    pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value)
}

fn expect(pairs: &[(&str, &str)], key: &str, value: &str) -> Result<(), InitiatorError> {
    let holds = find(pairs, key) == Some(value);
    if holds { Ok(()) } else { Err(InitiatorError::Protocol("the target does not agree to CHAP")) }
}
