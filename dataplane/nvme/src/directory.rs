//! What a node offers: subsystems, the hosts that each admits, the namespaces that each host sees,
//! and the portals that discovery names. A directory never changes; the owner publishes a new one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::HostKeys;

/// The well-known discovery subsystem (NVMe Base 2.0 §4.7).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";
/// The longest NQN, bytes.
pub const NQN_LENGTH_MAX: usize = 223;
/// The highest namespace identifier that may be published (reported as NN).
pub const NAMESPACE_ID_MAX: u32 = 1 << 20;
/// The most namespaces that one host may see in one subsystem (reported as MNAN and NANAGRPID).
pub const NAMESPACES_PER_HOST_MAX: usize = 1024;
/// The highest ANA group identifier (reported as ANAGRPMAX).
pub const ANA_GROUP_MAX: u32 = 0x7FFF_FFFF;

/// Access state of an ANA group on this node (NVMe Base 2.0 §8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnaState {
    /// Served here.
    Optimized,
    /// Served here, another path is better.
    NonOptimized,
    /// Not served here now.
    Inaccessible,
    /// Will not come back on this node.
    PersistentLoss,
    /// Moving; must end within [`crate::ANA_TRANSITION_SECONDS_MAX`].
    Change,
}

impl AnaState {
    /// The code in log page 0Ch.
    #[must_use]
    pub const fn code(self) -> u8 {
        match self {
            AnaState::Optimized => 0x1,
            AnaState::NonOptimized => 0x2,
            AnaState::Inaccessible => 0x3,
            AnaState::PersistentLoss => 0x4,
            AnaState::Change => 0xF,
        }
    }

    /// The state with this code.
    #[must_use]
    pub const fn from_code(code: u8) -> Option<Self> {
        match code {
            0x1 => Some(AnaState::Optimized),
            0x2 => Some(AnaState::NonOptimized),
            0x3 => Some(AnaState::Inaccessible),
            0x4 => Some(AnaState::PersistentLoss),
            0xF => Some(AnaState::Change),
            _ => None,
        }
    }
}

/// A volume as one host sees it through this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceView {
    /// Namespace identifier, 1 to [`NAMESPACE_ID_MAX`]; the same at both nodes.
    pub nsid: u32,
    /// The volume's UUID; the same at both nodes.
    pub uuid: [u8; 16],
    /// The volume's NGUID; the same at both nodes, never all zero.
    pub nguid: [u8; 16],
    /// Logical block size, bytes: 512 or 4096.
    pub block_size: u32,
    /// Size, logical blocks; at least 1.
    pub blocks: u64,
    /// ANA group, 1 to [`ANA_GROUP_MAX`]; namespaces of one group have one state.
    pub ana_group: u32,
    /// Access state on this node.
    pub state: AnaState,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Why a directory was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirectoryError {
    /// A namespace identifier is out of range.
    #[error("namespace id {0} is not in 1..={NAMESPACE_ID_MAX}")]
    NamespaceId(u32),
    /// Two namespaces of one host share an identifier.
    #[error("namespace id {0} is given twice to one host")]
    DuplicateNamespaceId(u32),
    /// A host sees too many namespaces.
    #[error(
        "{0} namespaces are mapped to one host, the limit is {NAMESPACES_PER_HOST_MAX}; spread them over subsystems"
    )]
    TooManyNamespaces(usize),
    /// A block size that is not served.
    #[error("namespace {nsid} has blocks of {block_size} bytes; 512 and 4096 are supported")]
    BlockSize {
        /// The namespace.
        nsid: u32,
        /// Its block size, bytes.
        block_size: u32,
    },
    /// A namespace without blocks, or with more than 2^63 bytes.
    #[error("namespace {nsid} has {blocks} blocks, which cannot be served")]
    Size {
        /// The namespace.
        nsid: u32,
        /// Its size, blocks.
        blocks: u64,
    },
    /// An ANA group out of range.
    #[error("namespace {nsid} is in ANA group {group}, not in 1..={ANA_GROUP_MAX}")]
    AnaGroup {
        /// The namespace.
        nsid: u32,
        /// Its group.
        group: u32,
    },
    /// Two namespaces of one ANA group differ in state.
    #[error("ANA group {0} has namespaces in different states; a group changes as one")]
    MixedGroup(u32),
    /// A namespace without a global identifier.
    #[error("namespace {0} has an all-zero NGUID; hosts could not match its paths")]
    NoGlobalId(u32),
    /// An NQN that is empty or too long.
    #[error("{0:?} is not an NQN of 1 to {NQN_LENGTH_MAX} bytes")]
    Nqn(String),
    /// A subsystem that takes the name of the discovery subsystem.
    #[error("a subsystem may not be named {DISCOVERY_NQN}")]
    ReservedNqn,
}

/// The namespaces that one host sees in one subsystem, ordered by identifier.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HostView {
    namespaces: Vec<NamespaceView>,
}

impl HostView {
    /// Checks and orders the namespaces.
    ///
    /// # Errors
    /// [`DirectoryError`] names the first namespace that cannot be served, and why.
    pub fn new(mut namespaces: Vec<NamespaceView>) -> Result<Self, DirectoryError> {
        if namespaces.len() > NAMESPACES_PER_HOST_MAX {
            return Err(DirectoryError::TooManyNamespaces(namespaces.len()));
        }
        namespaces.sort_by_key(|namespace| namespace.nsid);
        let mut states = BTreeMap::new();
        for namespace in &namespaces {
            check_namespace(namespace)?;
            if *states.entry(namespace.ana_group).or_insert(namespace.state) != namespace.state {
                return Err(DirectoryError::MixedGroup(namespace.ana_group));
            }
        }
        if let Some(pair) = namespaces.windows(2).find(|pair| pair[0].nsid == pair[1].nsid) {
            return Err(DirectoryError::DuplicateNamespaceId(pair[0].nsid));
        }
        Ok(HostView { namespaces })
    }

    /// The namespace with this identifier.
    #[must_use]
    pub fn namespace(&self, nsid: u32) -> Option<&NamespaceView> {
        let index = self.namespaces.binary_search_by_key(&nsid, |namespace| namespace.nsid).ok()?;
        self.namespaces.get(index)
    }

    /// All namespaces, ascending by identifier.
    #[must_use]
    pub fn namespaces(&self) -> &[NamespaceView] {
        &self.namespaces
    }
}

fn check_namespace(namespace: &NamespaceView) -> Result<(), DirectoryError> {
    let NamespaceView { nsid, block_size, blocks, ana_group: group, .. } = *namespace;
    if !(1..=NAMESPACE_ID_MAX).contains(&nsid) {
        return Err(DirectoryError::NamespaceId(nsid));
    }
    if block_size != 512 && block_size != 4096 {
        return Err(DirectoryError::BlockSize { nsid, block_size });
    }
    if blocks == 0 || blocks > (1 << 63) / u64::from(block_size) {
        return Err(DirectoryError::Size { nsid, blocks });
    }
    if !(1..=ANA_GROUP_MAX).contains(&group) {
        return Err(DirectoryError::AnaGroup { nsid, group });
    }
    if namespace.nguid == [0; 16] {
        return Err(DirectoryError::NoGlobalId(nsid));
    }
    Ok(())
}

/// One subsystem: the hosts that it admits, by NQN, and what each sees. Hosts whose view did not
/// change should keep their `Arc` from one directory to the next: comparing is then free.
#[derive(Clone, Debug, Default)]
pub struct Subsystem {
    /// Serial number, up to 20 ASCII characters; the same at both nodes.
    pub serial: String,
    /// What each admitted host sees, by host NQN.
    pub hosts: BTreeMap<String, Arc<HostView>>,
    /// Secrets of the hosts that must prove one, by host NQN. Hosts that are not named here are let in
    /// by their name alone.
    pub keys: BTreeMap<String, Arc<HostKeys>>,
}

/// An address that discovery names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalEntry {
    /// Port identifier, unique over both nodes.
    pub id: u16,
    /// Address that hosts connect to.
    pub address: IpAddr,
    /// TCP port.
    pub port: u16,
}

/// Everything that a node offers at one moment.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    subsystems: BTreeMap<String, Subsystem>,
    portals: Vec<PortalEntry>,
}

impl Directory {
    /// Checks names. `portals` are those of *both* nodes, so that a host that asks one learns of
    /// the other.
    ///
    /// # Errors
    /// [`DirectoryError`] names the NQN that is not one.
    pub fn new(
        subsystems: BTreeMap<String, Subsystem>,
        portals: Vec<PortalEntry>,
    ) -> Result<Self, DirectoryError> {
        for (nqn, subsystem) in &subsystems {
            if nqn == DISCOVERY_NQN {
                return Err(DirectoryError::ReservedNqn);
            }
            let names = std::iter::once(nqn).chain(subsystem.hosts.keys());
            if let Some(bad) = names.into_iter().find(|name| !is_nqn(name)) {
                return Err(DirectoryError::Nqn(bad.clone()));
            }
        }
        Ok(Directory { subsystems, portals })
    }

    /// The subsystem of this name.
    #[must_use]
    pub fn subsystem(&self, nqn: &str) -> Option<&Subsystem> {
        self.subsystems.get(nqn)
    }

    /// What a host sees in a subsystem; `None` when it is not admitted there.
    #[must_use]
    pub fn host_view(&self, subsystem: &str, host: &str) -> Option<&Arc<HostView>> {
        self.subsystems.get(subsystem)?.hosts.get(host)
    }

    /// What a host must prove to a subsystem; `None` if nothing.
    pub(crate) fn keys(&self, subsystem: &str, host: &str) -> Option<&Arc<HostKeys>> {
        self.subsystems.get(subsystem)?.keys.get(host)
    }

    /// The subsystems that admit a host, ascending by NQN.
    pub fn subsystems_of<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a str> {
        self.subsystems
            .iter()
            .filter(move |(_, subsystem)| subsystem.hosts.contains_key(host))
            .map(|(nqn, _)| nqn.as_str())
    }

    /// The portals of both nodes.
    #[must_use]
    pub fn portals(&self) -> &[PortalEntry] {
        &self.portals
    }
}

pub(crate) fn is_nqn(name: &str) -> bool {
    (1..=NQN_LENGTH_MAX).contains(&name.len()) && !name.contains('\0')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(nsid: u32) -> NamespaceView {
        NamespaceView {
            nsid,
            uuid: [7; 16],
            nguid: [7; 16],
            block_size: 512,
            blocks: 100,
            ana_group: nsid,
            state: AnaState::Optimized,
            read_only: false,
        }
    }

    #[test]
    fn a_view_orders_its_namespaces() {
        let view = HostView::new(vec![namespace(9), namespace(2)]).expect("both are sound");
        assert_eq!(
            view.namespaces().iter().map(|namespace| namespace.nsid).collect::<Vec<_>>(),
            [2, 9]
        );
        assert!(view.namespace(9).is_some() && view.namespace(3).is_none());
    }

    #[test]
    fn what_cannot_be_served_is_refused() {
        let with = |change: fn(&mut NamespaceView)| {
            let mut changed = namespace(1);
            change(&mut changed);
            HostView::new(vec![changed]).expect_err("the namespace is unsound")
        };
        assert_eq!(with(|n| n.nsid = 0), DirectoryError::NamespaceId(0));
        assert_eq!(with(|n| n.blocks = 0), DirectoryError::Size { nsid: 1, blocks: 0 });
        assert_eq!(
            with(|n| n.blocks = u64::MAX),
            DirectoryError::Size { nsid: 1, blocks: u64::MAX }
        );
        assert_eq!(
            with(|n| n.block_size = 520),
            DirectoryError::BlockSize { nsid: 1, block_size: 520 }
        );
        assert_eq!(with(|n| n.ana_group = 0), DirectoryError::AnaGroup { nsid: 1, group: 0 });
        assert_eq!(with(|n| n.nguid = [0; 16]), DirectoryError::NoGlobalId(1));
        let twice = HostView::new(vec![namespace(1), namespace(1)]);
        assert_eq!(twice.expect_err("one id twice"), DirectoryError::DuplicateNamespaceId(1));
        let mixed = NamespaceView { ana_group: 1, state: AnaState::Change, ..namespace(2) };
        assert_eq!(
            HostView::new(vec![namespace(1), mixed]).expect_err("two states"),
            DirectoryError::MixedGroup(1)
        );
    }

    #[test]
    fn nobody_takes_the_name_of_discovery() {
        let subsystems = BTreeMap::from([(DISCOVERY_NQN.to_owned(), Subsystem::default())]);
        assert_eq!(
            Directory::new(subsystems, vec![]).expect_err("reserved"),
            DirectoryError::ReservedNqn
        );
        let subsystems = BTreeMap::from([("n".repeat(224), Subsystem::default())]);
        assert!(matches!(Directory::new(subsystems, vec![]), Err(DirectoryError::Nqn(_))));
    }
}
