//! Devices as people write them: `file:PATH[:SIZE]`, `block:PATH`, `memory:SIZE`,
//! `nvme://ADDRESS/SUBSYSTEM/NAMESPACE`.

use crate::cli::quantity::{InvalidSize, parse_size};
use std::net::{AddrParseError, SocketAddr};
use voute_schemas::place::Locator;

/// Why a text names no device.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvalidLocator {
    /// Not one of the four forms.
    #[error(
        "{0:?} names no device: write file:/absolute/path[:SIZE], block:/dev/disk/by-id/NAME, memory:SIZE or nvme://ADDRESS:PORT/SUBSYSTEM-NQN/NAMESPACE-UUID"
    )]
    Form(String),
    /// A path that the node could not find from where it runs.
    #[error("{0:?} is not an absolute path: the node opens it, so write it from / on")]
    RelativePath(String),
    /// A size that cannot be read.
    #[error(transparent)]
    Size(#[from] InvalidSize),
    /// An address that cannot be read.
    #[error(
        "{text:?} is no address: write an IP address and a port, for example 192.0.2.10:4420 ({cause})"
    )]
    Address {
        /// As given.
        text: String,
        /// What the parser said.
        cause: AddrParseError,
    },
    /// Not a UUID or NGUID.
    #[error("{0:?} is no namespace: write its UUID or NGUID, 32 hexadecimal digits")]
    Namespace(String),
}

/// Reads a device's locator. An existing file keeps its size; one that is to be created needs one.
///
/// # Errors
/// [`InvalidLocator`] says what to write instead.
pub fn parse_locator(text: &str) -> Result<Locator, InvalidLocator> {
    if let Some(rest) = text.strip_prefix("nvme://") {
        return parse_remote(rest);
    }
    match text.split_once(':') {
        Some(("file", rest)) => parse_file(rest),
        Some(("block", path)) => Ok(Locator::Block { path: absolute(path)? }),
        Some(("memory", size)) => Ok(Locator::Memory { size_bytes: parse_size(size)? }),
        _ => Err(InvalidLocator::Form(text.to_owned())),
    }
}

fn parse_file(rest: &str) -> Result<Locator, InvalidLocator> {
    if let Some((path, size)) = rest.rsplit_once(':')
        && !path.is_empty()
        && !size.contains('/')
    {
        return Ok(Locator::File { path: absolute(path)?, size_bytes: parse_size(size)? });
    }
    Ok(Locator::File { path: absolute(rest)?, size_bytes: 0 })
}

fn absolute(path: &str) -> Result<String, InvalidLocator> {
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(InvalidLocator::RelativePath(path.to_owned()))
    }
}

fn parse_remote(rest: &str) -> Result<Locator, InvalidLocator> {
    let mut parts = rest.splitn(3, '/');
    let (Some(address), Some(subsystem), Some(namespace)) =
        (parts.next(), parts.next(), parts.next())
    else {
        return Err(InvalidLocator::Form(format!("nvme://{rest}")));
    };
    let address: SocketAddr = address
        .parse()
        .map_err(|cause| InvalidLocator::Address { text: address.to_owned(), cause })?;
    let digits: String = namespace.chars().filter(|character| *character != '-').collect();
    if digits.len() != 32 || !digits.chars().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(InvalidLocator::Namespace(namespace.to_owned()));
    }
    Ok(Locator::RemoteNamespace {
        address,
        subsystem: subsystem.to_owned(),
        namespace: digits.to_ascii_lowercase(),
    })
}

/// Writes a locator in the form that [`parse_locator`] reads.
#[must_use]
pub fn show_locator(locator: &Locator) -> String {
    match locator {
        Locator::Memory { size_bytes } => format!("memory:{size_bytes}"),
        Locator::File { path, size_bytes: 0 } => format!("file:{path}"),
        Locator::File { path, size_bytes } => format!("file:{path}:{size_bytes}"),
        Locator::Block { path } => format!("block:{path}"),
        Locator::RemoteNamespace { address, subsystem, namespace } => {
            format!("nvme://{address}/{subsystem}/{namespace}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_device_can_be_written_and_is_shown_as_written() {
        for text in [
            "memory:1073741824",
            "file:/srv/voute/a.img",
            "file:/srv/voute/a.img:1073741824",
            "block:/dev/disk/by-id/nvme-x",
            "nvme://192.0.2.10:4420/nqn.2026-11.example:array/00112233445566778899aabbccddeeff",
            "nvme://[2001:db8::1]:4420/nqn.2026-11.example:array/00112233445566778899aabbccddeeff",
        ] {
            assert_eq!(show_locator(&parse_locator(text).expect(text)), text);
        }
    }

    #[test]
    fn a_file_may_be_given_with_the_size_to_create_it_with() {
        let expected = Locator::File { path: "/srv/a.img".into(), size_bytes: 1 << 30 };
        assert_eq!(parse_locator("file:/srv/a.img:1GiB"), Ok(expected));
    }

    #[test]
    fn a_locator_that_the_node_could_not_open_is_refused() {
        for text in [
            "",
            "/dev/sda",
            "block:sda",
            "file:a.img",
            "memory:",
            "nvme://host/x",
            "nvme://1.2.3.4:1/n/zz",
        ] {
            assert!(parse_locator(text).is_err(), "{text}");
        }
    }
}
