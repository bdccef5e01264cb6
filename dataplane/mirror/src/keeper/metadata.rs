//! Writes of headers and map pages: one at a time of each, and who waits for which.

use super::{Client, DevicePurpose, Joint, Keeper, KeeperEvent, LegFault, Waiter, Writer};
use crate::action::DeviceKind;
use crate::map::{self, REGIONS_PER_PAGE};
use crate::out::Out;
use std::sync::Arc;
use voute_buffer::Buffer;

impl Keeper {
    pub(super) fn write_header(&mut self, leg: usize, waiter: Waiter, out: &mut Out) {
        let writer = &mut self.legs[leg].header_writer;
        writer.next.push(waiter);
        writer.again = true;
        self.start_header(leg, out);
    }

    pub(super) fn start_header(&mut self, index: usize, out: &mut Out) {
        let leg = &mut self.legs[index];
        if leg.header_writer.writing || !leg.header_writer.again {
            return;
        }
        leg.header_writer.begin();
        leg.header.generation += 1;
        leg.nonces_under_way = (leg.header.nonce, leg.header.agreed_nonce);
        let bytes = Buffer::copy_of(&leg.header.encode());
        let offset = leg.header.offset();
        self.device(
            index,
            offset,
            DeviceKind::Write { data: Arc::new(bytes) },
            DevicePurpose::Header { leg: index },
            out,
        );
    }

    pub(super) fn write_page(
        &mut self,
        leg: usize,
        page: u64,
        waiter: Option<Waiter>,
        out: &mut Out,
    ) {
        let writer = &mut self.legs[leg].pages[page as usize].1;
        writer.next.extend(waiter);
        writer.again = true;
        self.start_page(leg, page, out);
    }

    pub(super) fn start_page(&mut self, index: usize, page: u64, out: &mut Out) {
        let leg = &mut self.legs[index];
        let entry = &mut leg.pages[page as usize];
        if entry.1.writing || !entry.1.again {
            return;
        }
        entry.1.begin();
        entry.0 += 1;
        let generation = entry.0;
        leg.not_durable
            .iter_mut()
            .filter(|(region, _)| *region / REGIONS_PER_PAGE == page)
            .for_each(|(_, under_way)| *under_way = true);
        let bytes =
            Buffer::copy_of(&map::encode_page(leg.id, page, generation, &leg.dirty, &leg.written));
        let purpose = DevicePurpose::Page { leg: index, page };
        self.device(
            index,
            map::page_offset(page, generation % 2),
            DeviceKind::Write { data: Arc::new(bytes) },
            purpose,
            out,
        );
    }

    pub(super) fn wake(
        &mut self,
        leg: usize,
        waiters: Vec<Waiter>,
        fault: Option<LegFault>,
        out: &mut Out,
    ) {
        for waiter in waiters {
            match waiter {
                Waiter::Client(client) => {
                    self.events.push_back(KeeperEvent::Done(client, fault.map_or(Ok(None), Err)))
                }
                Waiter::Regained(key) => {
                    if let (Some(fault), Some(operation)) = (fault, self.operations.get_mut(key)) {
                        operation.fault = operation.fault.or(Some(fault));
                    }
                    self.finish(key, None, out);
                }
                Waiter::Region(region) => self.region_prepared(leg, region, fault, out),
                Waiter::Barring(token) => self.header_barred(token, fault, out),
                Waiter::Joint(key) => self.joint_written(key, fault),
                Waiter::NewPage => {
                    let left = &mut self.legs[leg].new_pages;
                    *left = left.saturating_sub(1);
                    if fault.is_none() && *left == 0 && self.legs[leg].growing {
                        self.count_pages(leg, out);
                    }
                }
                Waiter::Grown(size) => {
                    self.legs[leg].growing = false;
                    if fault.is_none() {
                        self.legs[leg].size = size;
                    }
                    self.grow(leg, out);
                }
            }
        }
    }

    pub(super) fn write_headers(&mut self, client: Client, out: &mut Out) {
        let key = self.joints.insert(Joint { client, left: self.legs.len(), fault: None });
        for leg in 0..self.legs.len() {
            self.write_header(leg, Waiter::Joint(key), out);
        }
    }

    pub(super) fn joint_written(&mut self, key: u64, fault: Option<LegFault>) {
        let Some(joint) = self.joints.get_mut(key) else { return };
        joint.left -= 1;
        joint.fault = joint.fault.or(fault);
        if joint.left == 0 {
            let joint = self.joints.remove(key).expect("looked up above");
            self.events
                .push_back(KeeperEvent::Done(joint.client, joint.fault.map_or(Ok(None), Err)));
        }
    }
}

impl Writer {
    pub(super) fn begin(&mut self) {
        self.writing = true;
        self.again = false;
        self.under_way = std::mem::take(&mut self.next);
    }

    pub(super) fn end(&mut self) -> Vec<Waiter> {
        self.writing = false;
        std::mem::take(&mut self.under_way)
    }
}
