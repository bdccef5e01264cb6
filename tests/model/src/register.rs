//! What one host may see of one block: a writer whose writes follow each other, and a reader.
//!
//! The writer's numbers rise. A write that was answered with an error may still take effect, but in
//! its place in the order or never: the real hosts' next attempt relies on that. So the block's number
//! never falls, for a reader who asks after it was seen or acknowledged.

use std::fmt::Write;

/// A request of the host that is not answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Pending {
    pub(crate) node: usize,
    pub(crate) tag: u64,
    /// Of a write: its number; of a read: what the block held at least when it began.
    pub(crate) value: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    pub(crate) write: Option<Pending>,
    pub(crate) read: Option<Pending>,
    /// Where the next request goes.
    pub(crate) path: usize,
    tags: u64,
    /// The highest number that was written, or tried.
    pub(crate) tried: u64,
    /// The highest number that was acknowledged or read.
    pub(crate) settled: u64,
}

/// Tags are names: far above all amounts, see [`crate::canon`].
const FIRST_TAG: u64 = 1 << 40;

impl Host {
    fn next_tag(&mut self) -> u64 {
        self.tags += 1;
        FIRST_TAG + self.tags
    }

    /// The next write, if none is under way.
    pub(crate) fn begin_write(&mut self) -> Option<Pending> {
        if self.write.is_some() {
            return None;
        }
        self.tried += 1;
        let pending = Pending { node: self.path, tag: self.next_tag(), value: self.tried };
        self.write = Some(pending);
        self.write
    }

    /// The next read, if none is under way.
    pub(crate) fn begin_read(&mut self) -> Option<Pending> {
        if self.read.is_some() {
            return None;
        }
        let pending = Pending { node: self.path, tag: self.next_tag(), value: self.settled };
        self.read = Some(pending);
        self.read
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.write.is_none() && self.read.is_none()
    }

    /// A write with this tag was acknowledged. Whether there was one.
    pub(crate) fn written(&mut self, tag: u64) -> bool {
        let write = self.write.take_if(|write| write.tag == tag);
        if let Some(write) = write {
            self.settled = self.settled.max(write.value);
        }
        write.is_some()
    }

    /// A read with this tag returned a number.
    ///
    /// # Errors
    /// What is wrong with that.
    pub(crate) fn was_read(&mut self, tag: u64, value: u64) -> Result<(), String> {
        let Some(read) = self.read.take_if(|read| read.tag == tag) else {
            return Err(format!("data for the request {tag}, which is no read under way"));
        };
        if value < read.value {
            return Err(format!("a read returned {value}, after {} was settled", read.value));
        }
        if value > self.tried {
            return Err(format!("a read returned {value}, which was never written"));
        }
        self.settled = self.settled.max(value);
        Ok(())
    }

    /// A request with this tag ended without a result, by an error or with its node.
    pub(crate) fn failed(&mut self, tag: u64) {
        let ended = self.write.take_if(|write| write.tag == tag).is_some()
            || self.read.take_if(|read| read.tag == tag).is_some();
        if ended {
            self.path = 1 - self.path;
        }
    }

    pub(crate) fn describe(&self, text: &mut String) {
        for pending in [self.write, self.read] {
            match pending {
                Some(Pending { node, tag, value }) => {
                    let _ = write!(text, "asked {node} {tag} V{value} ");
                }
                None => text.push_str("idle "),
            }
        }
        let _ = write!(text, "path {} tried V{} settled V{} ", self.path, self.tried, self.settled);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_acknowledged_is_read() {
        let mut host = Host::default();
        let write = host.begin_write().unwrap();
        assert!(host.written(write.tag));
        let read = host.begin_read().unwrap();
        assert!(host.was_read(read.tag, 0).is_err());
        let read = host.begin_read().unwrap();
        assert_eq!(host.was_read(read.tag, 1), Ok(()));
    }

    #[test]
    fn what_was_read_once_is_not_taken_back() {
        let mut host = Host::default();
        let write = host.begin_write().unwrap();
        host.failed(write.tag);
        let read = host.begin_read().unwrap();
        assert_eq!(host.was_read(read.tag, 1), Ok(()), "it took effect after all");
        let read = host.begin_read().unwrap();
        assert!(host.was_read(read.tag, 0).is_err());
        let read = host.begin_read().unwrap();
        assert!(host.was_read(read.tag, 2).is_err(), "never written");
    }

    #[test]
    fn a_read_may_return_what_was_there_when_it_began() {
        let mut host = Host::default();
        let (write, read) = (host.begin_write().unwrap(), host.begin_read().unwrap());
        assert!(host.written(write.tag));
        assert_eq!(host.was_read(read.tag, 0), Ok(()));
    }
}
