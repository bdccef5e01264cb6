//! Login phase of a target (RFC 7143 §6.3, §11.12, §11.13).
//!
//! ```text
//!   first PDU ─► security (0) ─► operational (1) ─► full feature (3)
//!        └───────────────────────►┘        any error ─► closed
//! ```
//!
//! A stage ends when the initiator asks for the next and nothing is missing; text that a host must
//! prove first (CHAP) holds it back.

use crate::chap::{self, Algorithm};
use crate::negotiation::{Answer, LOGIN_LENGTH_MAX, Parameters, RECEIVE_LENGTH_MAX};
use crate::pdu::{Header, opcode};
use crate::session::{Session, SessionKey};
use crate::target::{Authentication, Chap, Directory, HostView, Portal, Target};
use crate::text;
use std::sync::Arc;

/// Most text of one login request that spans PDUs, bytes.
const TEXT_LENGTH_MAX: usize = 16 * 1024;
/// Most login requests of one connection.
const REQUESTS_MAX: u32 = 64;

/// Login status: class and detail (§11.13.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u8, pub(crate) u8);

impl Status {
    const SUCCESS: Status = Status(0, 0);
    pub(crate) const INITIATOR_ERROR: Status = Status(2, 0);
    const AUTHENTICATION_FAILURE: Status = Status(2, 1);
    const FORBIDDEN: Status = Status(2, 2);
    const NOT_FOUND: Status = Status(2, 3);
    const UNSUPPORTED_VERSION: Status = Status(2, 5);
    const TOO_MANY_CONNECTIONS: Status = Status(2, 6);
    const MISSING_PARAMETER: Status = Status(2, 7);
    const UNSUPPORTED_SESSION_TYPE: Status = Status(2, 9);
    const NO_SUCH_SESSION: Status = Status(2, 10);
    const OUT_OF_RESOURCES: Status = Status(3, 2);
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Security,
    Operational,
}

/// What the initiator has proved so far.
enum Proof {
    /// Nothing yet, or nothing asked for.
    Open,
    /// CHAP was agreed on; the algorithm is awaited.
    Algorithm,
    /// Our challenge is out.
    Challenged { algorithm: Algorithm, identifier: u8, challenge: [u8; chap::CHALLENGE_LENGTH] },
    /// Proved, or none was needed.
    Given,
}

/// Login of one connection.
pub(crate) struct Login {
    portal: Portal,
    stage: Option<Stage>,
    text: Vec<u8>,
    requests: u32,
    isid: [u8; 6],
    initiator: Option<Arc<str>>,
    is_discovery: bool,
    authentication: Authentication,
    /// Whether it is for the initiator to say if anything is to be proven.
    may_be_open: bool,
    proof: Proof,
    parameters: Parameters,
    has_declared: bool,
    status_number: u32,
}

/// The answer to one login request.
pub(crate) struct Reply {
    pub(crate) header: Header,
    pub(crate) text: Vec<u8>,
    pub(crate) next: Next,
}

/// What comes after a reply.
pub(crate) enum Next {
    /// Another login request.
    More,
    /// The end of the connection, once the reply is sent.
    Close,
    /// Full-feature phase.
    Full(Box<Entered>),
}

/// A finished login.
pub(crate) struct Entered {
    pub(crate) initiator: Arc<str>,
    /// None for a discovery session.
    pub(crate) session: Option<Arc<Session>>,
    pub(crate) predecessor: Option<Arc<Session>>,
    pub(crate) parameters: Parameters,
    pub(crate) expected_command_number: u32,
    pub(crate) status_number: u32,
}

impl Login {
    pub(crate) fn new(portal: Portal) -> Self {
        Login {
            portal,
            stage: None,
            text: Vec::new(),
            requests: 0,
            isid: [0; 6],
            initiator: None,
            is_discovery: false,
            authentication: Authentication::None,
            may_be_open: false,
            proof: Proof::Open,
            parameters: Parameters::default(),
            has_declared: false,
            status_number: 1,
        }
    }

    pub(crate) fn portal(&self) -> &Portal {
        &self.portal
    }

    /// Answers one login request; `data` is its data segment.
    pub(crate) fn receive(&mut self, request: &Header, data: &[u8], target: &Target) -> Reply {
        let mut text = Vec::new();
        let (status, flags, next) = match self.advance(request, data, target, &mut text) {
            Ok((flags, next)) => (Status::SUCCESS, flags, next),
            Err(status) => {
                text.clear();
                (status, 0, Next::Close)
            }
        };
        let tsih = match &next {
            Next::Full(entered) => entered.session.as_ref().map_or(0xffff, |session| session.tsih),
            Next::More | Next::Close => request.tsih(),
        };
        let mut header = Header::new(opcode::LOGIN_RESPONSE);
        header.set_flags(flags);
        header.0[8..14].copy_from_slice(&request.isid());
        header
            .set_u16(14, tsih)
            .set_task_tag(request.task_tag())
            .set_u32(24, self.status_number)
            .set_u32(28, request.command_number())
            .set_u32(
                32,
                request.command_number().wrapping_add(crate::full_feature::COMMAND_WINDOW - 1),
            );
        header.0[36] = status.0;
        header.0[37] = status.1;
        self.status_number = self.status_number.wrapping_add(1);
        Reply { header, text, next }
    }

    fn advance(
        &mut self,
        request: &Header,
        data: &[u8],
        target: &Target,
        reply: &mut Vec<u8>,
    ) -> Result<(u8, Next), Status> {
        let (wants_transit, current, next) =
            (request.is_final(), request.flags() >> 2 & 3, request.flags() & 3);
        self.requests += 1;
        if self.requests > REQUESTS_MAX {
            return Err(Status::INITIATOR_ERROR);
        }
        if request.0[3] != 0 {
            return Err(Status::UNSUPPORTED_VERSION);
        }
        let is_first = self.stage.is_none() && self.text.is_empty();
        if is_first {
            self.isid = request.isid();
            if request.tsih() != 0 {
                let exists = target.has_tsih(request.tsih());
                return Err(if exists {
                    Status::TOO_MANY_CONNECTIONS
                } else {
                    Status::NO_SUCH_SESSION
                });
            }
        }
        let asked_stage = match current {
            0 => Stage::Security,
            1 => Stage::Operational,
            _ => return Err(Status::INITIATOR_ERROR),
        };
        if self.stage.is_some_and(|stage| stage != asked_stage) {
            return Err(Status::INITIATOR_ERROR);
        }
        if wants_transit && (next <= current || next == 2 || request.text_continues()) {
            return Err(Status::INITIATOR_ERROR);
        }
        if self.text.len() + data.len() > TEXT_LENGTH_MAX {
            return Err(Status::INITIATOR_ERROR);
        }
        self.text.extend_from_slice(data);
        if request.text_continues() {
            return Ok((current << 2, Next::More));
        }
        let all = std::mem::take(&mut self.text);
        let pairs = text::parse(&all).map_err(|_| Status::INITIATOR_ERROR)?;
        let directory = target.directory();
        if self.stage.is_none() {
            self.introduce(&pairs, target, &directory)?;
            self.stage = Some(asked_stage);
            if !self.is_discovery {
                text::push(reply, "TargetPortalGroupTag", &self.portal.group_tag.to_string());
                if let Some(alias) = &target.config.alias {
                    text::push(reply, "TargetAlias", alias);
                }
            }
        }
        match asked_stage {
            Stage::Security => self.secure(&pairs, target, reply)?,
            Stage::Operational => self.negotiate(&pairs, reply)?,
        }
        if !wants_transit {
            return Ok((current << 2, Next::More));
        }
        self.transit(current, next, request, target)
    }

    /// The names and the session type, in the first request (§6.3).
    fn introduce(
        &mut self,
        pairs: &[(&str, &str)],
        target: &Target,
        directory: &Directory,
    ) -> Result<(), Status> {
        let find =
            |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        let initiator = find("InitiatorName").ok_or(Status::MISSING_PARAMETER)?;
        if initiator.is_empty() || initiator.len() > 223 {
            return Err(Status::INITIATOR_ERROR);
        }
        self.is_discovery = match find("SessionType") {
            None | Some("Normal") => false,
            Some("Discovery") => true,
            Some(_) => return Err(Status::UNSUPPORTED_SESSION_TYPE),
        };
        self.initiator = Some(Arc::from(initiator.to_lowercase()));
        if self.is_discovery {
            // A discovery session shows a host its portals and no data. Nothing need be proven where
            // the node does not ask for it, but a host that wants to, can: by its own secret.
            let host = directory.host(initiator);
            (self.authentication, self.may_be_open) = match (&directory.discovery, host) {
                (Authentication::None, Some(host)) => (host.authentication.clone(), true),
                (asked, _) => (asked.clone(), false),
            };
            return Ok(());
        }
        let named = find("TargetName").ok_or(Status::MISSING_PARAMETER)?;
        if !named.eq_ignore_ascii_case(&target.config.name) {
            return Err(Status::NOT_FOUND);
        }
        let host: &HostView = directory.host(initiator).ok_or(Status::FORBIDDEN)?;
        self.authentication = host.authentication.clone();
        Ok(())
    }

    fn secure(
        &mut self,
        pairs: &[(&str, &str)],
        target: &Target,
        reply: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let find =
            |wanted: &str| pairs.iter().find(|(key, _)| *key == wanted).map(|(_, value)| *value);
        for (key, value) in pairs {
            match *key {
                "AuthMethod" => self.choose_method(value, reply)?,
                "CHAP_A" => self.challenge(value, target, reply)?,
                "CHAP_N" | "CHAP_R" | "CHAP_I" | "CHAP_C" | "InitiatorName" | "SessionType"
                | "TargetName" | "InitiatorAlias" => {}
                _ => self.settle(key, value, reply),
            }
        }
        if find("CHAP_N").is_some() || find("CHAP_R").is_some() {
            self.check_response(&find, reply)?;
        }
        Ok(())
    }

    fn choose_method(&mut self, offers: &str, reply: &mut Vec<u8>) -> Result<(), Status> {
        if !matches!(self.proof, Proof::Open) {
            return Err(Status::INITIATOR_ERROR);
        }
        let wants_none = |offer: &str| offer == "None" || offer == "CHAP";
        let is_open = self.may_be_open && text::choose(offers, wants_none) == Some("None");
        let (method, proof) = match self.authentication {
            _ if is_open => ("None", Proof::Given),
            Authentication::None => ("None", Proof::Given),
            Authentication::Chap(_) => ("CHAP", Proof::Algorithm),
        };
        if text::choose(offers, |offer| offer == method).is_none() {
            return Err(Status::AUTHENTICATION_FAILURE);
        }
        text::push(reply, "AuthMethod", method);
        self.proof = proof;
        Ok(())
    }

    fn challenge(
        &mut self,
        offers: &str,
        target: &Target,
        reply: &mut Vec<u8>,
    ) -> Result<(), Status> {
        if !matches!(self.proof, Proof::Algorithm) {
            return Err(Status::INITIATOR_ERROR);
        }
        let algorithm = text::choose(offers, |offer| Algorithm::from_number(offer).is_some())
            .and_then(Algorithm::from_number)
            .ok_or(Status::AUTHENTICATION_FAILURE)?;
        let challenge = target.next_challenge();
        let identifier = challenge[0];
        text::push(reply, "CHAP_A", algorithm.number());
        text::push(reply, "CHAP_I", &identifier.to_string());
        text::push(reply, "CHAP_C", &chap::to_hex(&challenge));
        self.proof = Proof::Challenged { algorithm, identifier, challenge };
        Ok(())
    }

    fn check_response<'a>(
        &mut self,
        find: &impl Fn(&str) -> Option<&'a str>,
        reply: &mut Vec<u8>,
    ) -> Result<(), Status> {
        let (Proof::Challenged { algorithm, identifier, challenge }, Authentication::Chap(chap)) =
            (&self.proof, &self.authentication)
        else {
            return Err(Status::INITIATOR_ERROR);
        };
        let name = find("CHAP_N").ok_or(Status::MISSING_PARAMETER)?;
        let given = find("CHAP_R").and_then(chap::from_text).ok_or(Status::MISSING_PARAMETER)?;
        let expected = chap::response(*algorithm, *identifier, &chap.host.secret, challenge);
        let right_name = chap::equal(name.as_bytes(), chap.host.name.as_bytes());
        if !(chap::equal(&expected, &given) & right_name) {
            return Err(Status::AUTHENTICATION_FAILURE);
        }
        if let (Some(their_identifier), Some(their_challenge)) = (find("CHAP_I"), find("CHAP_C")) {
            prove(chap, *algorithm, challenge, their_identifier, their_challenge, reply)?;
        }
        self.proof = Proof::Given;
        Ok(())
    }

    fn negotiate(&mut self, pairs: &[(&str, &str)], reply: &mut Vec<u8>) -> Result<(), Status> {
        if !self.has_proved() {
            return Err(Status::AUTHENTICATION_FAILURE);
        }
        for (key, value) in pairs {
            match *key {
                "InitiatorName" | "SessionType" | "TargetName" | "InitiatorAlias" => {}
                // Security keys have no place here (§6.3.3).
                "AuthMethod" => return Err(Status::INITIATOR_ERROR),
                _ => self.settle(key, value, reply),
            }
        }
        if !self.has_declared {
            self.has_declared = true;
            text::push(reply, "MaxRecvDataSegmentLength", &RECEIVE_LENGTH_MAX.to_string());
        }
        Ok(())
    }

    fn settle(&mut self, key: &str, value: &str, reply: &mut Vec<u8>) {
        match self.parameters.settle(key, value) {
            Answer::Value(answer) => text::push(reply, key, &answer),
            Answer::Silent => {}
            Answer::NotOperational => text::push(reply, key, "NotUnderstood"),
        }
    }

    fn has_proved(&self) -> bool {
        match (&self.authentication, &self.proof) {
            (Authentication::None, _) | (_, Proof::Given) => true,
            (Authentication::Chap(_), Proof::Open) => self.may_be_open,
            (Authentication::Chap(_), Proof::Algorithm | Proof::Challenged { .. }) => false,
        }
    }

    fn transit(
        &mut self,
        current: u8,
        next: u8,
        request: &Header,
        target: &Target,
    ) -> Result<(u8, Next), Status> {
        if !self.has_proved() {
            // Half-way through CHAP the initiator may ask early; then the stage just goes on (§6.3.1).
            let is_under_way = matches!(self.proof, Proof::Algorithm | Proof::Challenged { .. });
            return if is_under_way {
                Ok((current << 2, Next::More))
            } else {
                Err(Status::AUTHENTICATION_FAILURE)
            };
        }
        let flags = 0x80 | current << 2 | next;
        if next == 1 {
            self.stage = Some(Stage::Operational);
            return Ok((flags, Next::More));
        }
        let initiator = self.initiator.clone().ok_or(Status::MISSING_PARAMETER)?;
        let (session, predecessor) = if self.is_discovery {
            (None, None)
        } else {
            let key = SessionKey {
                initiator: initiator.clone(),
                isid: self.isid,
                group_tag: self.portal.group_tag,
                relative_port: self.portal.relative_port,
            };
            let (session, predecessor) = target.enter(key).map_err(|_| Status::OUT_OF_RESOURCES)?;
            (Some(session), predecessor)
        };
        self.parameters.close();
        let entered = Entered {
            initiator,
            session,
            predecessor,
            parameters: self.parameters.clone(),
            expected_command_number: request.command_number(),
            status_number: self.status_number.wrapping_add(1),
        };
        Ok((flags, Next::Full(Box::new(entered))))
    }
}

/// Our half of mutual CHAP. A challenge equal to ours is a reflection, and equal secrets would let a
/// host answer its own challenge (RFC 7143 §12.1.3, RFC 1994 §8): both are refused.
fn prove(
    chap: &Chap,
    algorithm: Algorithm,
    our_challenge: &[u8],
    identifier: &str,
    challenge: &str,
    reply: &mut Vec<u8>,
) -> Result<(), Status> {
    let credential = chap.target.as_ref().ok_or(Status::AUTHENTICATION_FAILURE)?;
    let identifier = text::number(identifier)
        .and_then(|number| u8::try_from(number).ok())
        .ok_or(Status::INITIATOR_ERROR)?;
    let challenge = chap::from_text(challenge).ok_or(Status::INITIATOR_ERROR)?;
    if chap::equal(&challenge, our_challenge) || chap::equal(&credential.secret, &chap.host.secret)
    {
        return Err(Status::AUTHENTICATION_FAILURE);
    }
    text::push(reply, "CHAP_N", &credential.name);
    text::push(
        reply,
        "CHAP_R",
        &chap::to_hex(&chap::response(algorithm, identifier, &credential.secret, &challenge)),
    );
    Ok(())
}

const _: () = assert!(LOGIN_LENGTH_MAX as usize <= TEXT_LENGTH_MAX);
