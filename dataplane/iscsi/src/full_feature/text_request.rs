//! Text requests: SendTargets, answered over as many PDUs as the host's segment length needs (RFC
//! 7143 §11.10, §11.11, appendix C).

use super::FullFeature;
use crate::connection::Fatal;
use crate::negotiation::Answer;
use crate::pdu::{Header, RESERVED_TAG, opcode, reject};
use crate::text;

/// Most text of one request, bytes.
const REQUEST_MAX: usize = 16 * 1024;

/// A text exchange under way.
pub(super) struct TextAnswer {
    task_tag: u32,
    transfer_tag: u32,
    /// Text of a request that goes on.
    request: Vec<u8>,
    /// What is still to be sent.
    rest: Vec<u8>,
}

impl FullFeature {
    pub(super) fn answer_text(
        &mut self,
        header: &Header,
        data: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), Fatal> {
        let mut exchange = match self.text.take() {
            Some(exchange) if header.transfer_tag() != RESERVED_TAG => {
                if exchange.task_tag != header.task_tag()
                    || exchange.transfer_tag != header.transfer_tag()
                {
                    self.reject(header, reject::INVALID_FIELD, output);
                    return Ok(());
                }
                exchange
            }
            // A new request ends an exchange left half done (§11.10.4).
            Some(_) | None if header.transfer_tag() == RESERVED_TAG => TextAnswer {
                task_tag: header.task_tag(),
                transfer_tag: RESERVED_TAG,
                request: Vec::new(),
                rest: Vec::new(),
            },
            Some(_) | None => {
                self.reject(header, reject::PROTOCOL_ERROR, output);
                return Ok(());
            }
        };
        if exchange.request.len() + data.len() > REQUEST_MAX {
            return Err(Fatal::Protocol);
        }
        exchange.request.extend_from_slice(data);
        if !header.text_continues() && !exchange.request.is_empty() {
            let request = std::mem::take(&mut exchange.request);
            match text::parse(&request) {
                Ok(pairs) => exchange.rest = self.reply_to(&pairs),
                Err(_) => {
                    self.reject(header, reject::INVALID_FIELD, output);
                    return Ok(());
                }
            }
        }
        self.send_text(exchange, output);
        Ok(())
    }

    fn send_text(&mut self, mut exchange: TextAnswer, output: &mut Vec<u8>) {
        let most = self.parameters.peer_receive_length as usize;
        let later = exchange.rest.split_off(exchange.rest.len().min(most));
        let now = std::mem::replace(&mut exchange.rest, later);
        let goes_on = !exchange.rest.is_empty() || !exchange.request.is_empty();
        let mut header = Header::new(opcode::TEXT_RESPONSE);
        let continues = !exchange.rest.is_empty();
        header
            .set_flags(u8::from(!goes_on) << 7 | u8::from(continues) << 6)
            .set_task_tag(exchange.task_tag);
        exchange.transfer_tag = if goes_on { self.next_transfer_tag } else { RESERVED_TAG };
        self.next_transfer_tag =
            if self.next_transfer_tag + 1 == RESERVED_TAG { 1 } else { self.next_transfer_tag + 1 };
        header.set_transfer_tag(exchange.transfer_tag);
        self.number(&mut header, true);
        self.append(&mut header, &now, output);
        if goes_on {
            self.text = Some(exchange);
        }
    }

    fn reply_to(&mut self, pairs: &[(&str, &str)]) -> Vec<u8> {
        let mut reply = Vec::new();
        for (key, value) in pairs {
            match *key {
                "SendTargets" => self.send_targets(value, &mut reply),
                "MaxRecvDataSegmentLength" => {
                    if let Answer::Value(answer) = self.parameters.settle(key, value) {
                        text::push(&mut reply, key, &answer);
                    }
                }
                "InitiatorAlias" | "InitiatorName" => {}
                // Everything else is for login only.
                _ => text::push(&mut reply, key, "NotUnderstood"),
            }
        }
        reply
    }

    /// All portals of all sites that the host may use. `All` is for discovery sessions only.
    fn send_targets(&self, asked: &str, reply: &mut Vec<u8>) {
        let name = &self.target.config.name;
        let is_discovery = self.session.is_none();
        match asked {
            "All" if is_discovery => {}
            "All" => return text::push(reply, "SendTargets", "Reject"),
            "" if !is_discovery => {}
            asked if asked.eq_ignore_ascii_case(name) => {}
            _ => return,
        }
        let directory = self.directory();
        let Some(host) = directory.host(&self.initiator) else { return };
        text::push(reply, "TargetName", name);
        for portal in &directory.portals {
            if host.portals.as_ref().is_none_or(|allowed| allowed.contains(&portal.id)) {
                text::push(
                    reply,
                    "TargetAddress",
                    &format!("{},{}", portal.address, portal.group_tag),
                );
            }
        }
    }
}
