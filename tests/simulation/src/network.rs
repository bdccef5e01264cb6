//! Who can send to whom just now, in each direction.

use std::time::Duration;

/// Where messages come from and go to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Node(usize),
    Control(usize),
    Hosts,
}

const PLACES: usize = 5;

impl Place {
    fn index(self) -> usize {
        match self {
            Place::Node(index) => index,
            Place::Control(index) => 2 + index,
            Place::Hosts => 4,
        }
    }
}

#[derive(Default)]
pub(crate) struct Network {
    cut: [[bool; PLACES]; PLACES],
    slow_until: [[Duration; PLACES]; PLACES],
}

impl Network {
    pub(crate) fn is_cut(&self, from: Place, to: Place) -> bool {
        self.cut[from.index()][to.index()]
    }

    /// Whether both directions are there, as a new connection needs.
    pub(crate) fn connects(&self, one: Place, other: Place) -> bool {
        !self.is_cut(one, other) && !self.is_cut(other, one)
    }

    pub(crate) fn set_cut(&mut self, from: Place, to: Place, cut: bool) {
        self.cut[from.index()][to.index()] = cut;
    }

    pub(crate) fn is_slow(&self, from: Place, to: Place, now: Duration) -> bool {
        self.slow_until[from.index()][to.index()] > now
    }

    pub(crate) fn slow_down(&mut self, from: Place, to: Place, until: Duration) {
        self.slow_until[from.index()][to.index()] = until;
    }

    pub(crate) fn heal(&mut self) {
        *self = Network::default();
    }
}
