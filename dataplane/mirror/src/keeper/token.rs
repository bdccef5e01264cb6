//! Which token a keeper holds, and how it takes a higher one: drain, write headers, answer
//! (docs/mirror-rules.md rule 1).

use super::{Barring, Client, Keeper, KeeperEvent, LegFault, Waiter};
use crate::link::Bar;
use crate::out::Out;
use voute_schemas::mutant::{self, Mutant};
use voute_schemas::{NodeId, Token};

impl Keeper {
    /// Takes a token if it is higher than what is held; answers by [`KeeperEvent::Barred`].
    pub(crate) fn bar(&mut self, token: Token, by: NodeId, client: Client, out: &mut Out) {
        if let Err(fault) = self.usable() {
            return self.events.push_back(KeeperEvent::Barred(client, Err(fault)));
        }
        let highest = self.barring.as_ref().map_or(self.held, |barring| barring.token);
        if token == self.held
            && self.held_by == Some(by)
            && self.barring.is_none()
            && let Some(bar) = self.bar
        {
            return self.events.push_back(KeeperEvent::Barred(client, Ok(bar)));
        }
        if !matches!(token.partial_cmp(&highest), Some(std::cmp::Ordering::Greater)) {
            return self.events.push_back(KeeperEvent::Barred(client, Err(LegFault::Stale)));
        }
        if let Some(earlier) = self.barring.take() {
            self.events.push_back(KeeperEvent::Barred(earlier.client, Err(LegFault::Stale)));
        }
        self.bar = None;
        self.held_by = Some(by);
        self.barring = Some(Barring { token, client, headers: None });
        self.drained(out);
    }

    /// Refuses every token that is held, until a higher one comes. Nothing needs to be written: to
    /// refuse more is always safe.
    pub(crate) fn revoke(&mut self) {
        self.bar = None;
    }

    pub(super) fn drained(&mut self, out: &mut Out) {
        let is_draining = self.operations.len() > 0 && !mutant::is_active(Mutant::NoDrain);
        if is_draining || self.barring.as_ref().is_none_or(|it| it.headers.is_some()) {
            return;
        }
        let usable = self.usable();
        let Some(barring) = &mut self.barring else { return };
        if let Err(fault) = usable {
            // A leg that failed is read before its header names a higher token: only under the lower
            // one is what its journal holds carried out.
            let client = barring.client;
            self.barring = None;
            return self.events.push_back(KeeperEvent::Barred(client, Err(fault)));
        }
        if mutant::is_active(Mutant::TokenNotOnDisk) {
            (barring.headers, self.held) = (Some(1), barring.token);
            let token = barring.token;
            return self.header_barred(token, None, out);
        }
        barring.headers = Some(self.legs.len());
        let token = barring.token;
        for leg in 0..self.legs.len() {
            self.legs[leg].header.token = token;
            self.write_header(leg, Waiter::Barring(token), out);
        }
    }

    pub(super) fn header_barred(&mut self, token: Token, fault: Option<LegFault>, out: &mut Out) {
        // A later token may have replaced the one that this header was written for.
        let Some(barring) = self.barring.as_mut().filter(|barring| barring.token == token) else {
            return;
        };
        let Some(left) = &mut barring.headers else { return };
        if let Some(fault) = fault {
            let client = barring.client;
            self.barring = None;
            return self.events.push_back(KeeperEvent::Barred(client, Err(fault)));
        }
        *left -= 1;
        if *left == 0 {
            let client = barring.client;
            self.held = barring.token;
            self.barring = None;
            let bar = match mutant::is_active(Mutant::OneBarForAnEpoch) {
                true => Bar(self.held.epoch.sequence.0 as u32),
                false => out.next_bar(),
            };
            self.bar = Some(bar);
            self.events.push_back(KeeperEvent::Barred(client, Ok(bar)));
        }
    }
}
