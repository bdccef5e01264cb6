//! Node streams: what nodes and the control process say to each other, in order, until a stream
//! breaks.

use crate::network::Place;
use crate::world::{Event, World};
use std::collections::VecDeque;
use std::time::Duration;
use voute_schemas::contract::{CONTRACT_VERSION, FromNode, Hello, ToNode};

/// The control process that nodes speak to: the one that signs.
pub(crate) const SERVING: usize = 0;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Toward {
    Node,
    Control,
}

pub(crate) struct Stream {
    node: usize,
    process: u64,
    life: u64,
    to_node: VecDeque<ToNode>,
    to_control: VecDeque<FromNode>,
    /// When the last message in each direction arrives.
    last: [Duration; 2],
}

const RECONNECT_MS: (u64, u64) = (100, 500);
/// How long a silent stream lives.
const SILENCE_MS: (u64, u64) = (2_000, 15_000);

impl World {
    pub(crate) fn open_stream(&mut self, node: usize, process: u64) {
        let state = &self.nodes[node];
        if state.process != process || state.mirror.is_none() {
            return;
        }
        let control = &self.controls[SERVING];
        let (here, there) = (Place::Node(node), Place::Control(SERVING));
        let may = control.serves() && self.network.connects(here, there);
        if state.stream.is_none() && may {
            let (id, life) = (self.name(), self.controls[SERVING].life);
            let stream = Stream {
                node,
                process,
                life,
                to_node: VecDeque::new(),
                to_control: VecDeque::new(),
                last: [self.now; 2],
            };
            self.streams.insert(id, stream);
            self.nodes[node].stream = Some(id);
            let delay = self.random.micros(500, 3_000);
            return self.after(delay, Event::StreamUp { id });
        }
        let delay = self.random.millis(RECONNECT_MS.0, RECONNECT_MS.1);
        self.after(delay, Event::OpenStream { node, process });
    }

    pub(crate) fn stream_up(&mut self, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (node, process) = (stream.node, stream.process);
        let state = &self.nodes[node];
        let hello = Hello {
            contract: CONTRACT_VERSION,
            node: state.id,
            incarnation: state.incarnation,
            software: String::new(),
            engine: String::new(),
            obeyed: state.obeyed,
        };
        self.nodes[node].escalations.disconnected();
        self.nodes[node].answers_us = 0;
        if !self.stream_opened(id, &hello) {
            return self.break_stream(id);
        }
        self.tell(|| format!("node {node}'s stream is open"));
        self.report_soon(node);
        self.after(Duration::ZERO, Event::SendEscalations { node, process });
    }

    pub(crate) fn say_to_node(&mut self, id: u64, message: ToNode) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.to_node.push_back(message);
            self.schedule(id, Toward::Node);
        }
    }

    pub(crate) fn say_to_control(&mut self, id: u64, message: FromNode) {
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.to_control.push_back(message);
            self.schedule(id, Toward::Control);
        }
    }

    fn ways(node: usize, toward: Toward) -> (Place, Place) {
        let (here, there) = (Place::Node(node), Place::Control(SERVING));
        match toward {
            Toward::Node => (there, here),
            Toward::Control => (here, there),
        }
    }

    fn schedule(&mut self, id: u64, toward: Toward) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (from, to) = Self::ways(stream.node, toward);
        let travel = self.travel(from, to);
        let arrival = self.now + travel;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let last = &mut stream.last[toward as usize];
        *last = (*last).max(arrival);
        let at = *last;
        self.at(at, Event::StreamMessage { id, toward });
    }

    pub(crate) fn stream_message(&mut self, id: u64, toward: Toward) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let (from, to) = Self::ways(stream.node, toward);
        if self.network.is_cut(from, to) {
            // Sent again and again, until it gets through or the stream is given up.
            let delay = self.random.millis(20, 200);
            return self.after(delay, Event::StreamMessage { id, toward });
        }
        let (node, process, life) = (stream.node, stream.process, stream.life);
        match toward {
            Toward::Node => {
                let message = stream.to_node.pop_front();
                if self.nodes[node].process == process
                    && let Some(message) = message
                {
                    self.control_says(node, id, message);
                }
            }
            Toward::Control => {
                let message = stream.to_control.pop_front();
                if self.controls[SERVING].life == life
                    && let Some(message) = message
                {
                    self.node_says(node, id, message);
                }
            }
        }
    }

    /// Both ends learn that a stream is over.
    pub(crate) fn break_stream(&mut self, id: u64) {
        let Some(stream) = self.streams.remove(&id) else { return };
        let (node, process) = (stream.node, stream.process);
        self.tell(|| format!("node {node}'s stream is over"));
        self.stream_closed(node, id, stream.life);
        let state = &mut self.nodes[node];
        if state.stream == Some(id) {
            state.stream = None;
            if state.process == process {
                let delay = self.random.millis(RECONNECT_MS.0, RECONNECT_MS.1);
                self.after(delay, Event::OpenStream { node, process });
            }
        }
    }

    /// Something went silent between a node and the control process: whoever waits gives up some time.
    pub(crate) fn doubt_streams(&mut self) {
        let doubtful: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, stream)| {
                !self.network.connects(Place::Node(stream.node), Place::Control(SERVING))
                    || self.nodes[stream.node].process != stream.process
            })
            .map(|(id, _)| *id)
            .collect();
        for id in doubtful {
            let delay = self.random.millis(SILENCE_MS.0, SILENCE_MS.1);
            self.after(delay, Event::BreakStream { id });
        }
    }

    /// A process ended, and the kernel says so to the other end.
    pub(crate) fn reset_streams(&mut self, is_of: impl Fn(usize) -> bool) {
        let ended: Vec<u64> =
            self.streams.iter().filter(|(_, it)| is_of(it.node)).map(|(id, _)| *id).collect();
        for id in ended {
            self.break_stream(id);
        }
    }
}
