//! LOG SENSE (SPC-4 §6.8, pages §7.3): the pages that hosts and monitoring look for, with what is true of
//! a volume. It has no sensor and no medium of its own that could foretell a failure, and says so; nothing
//! is counted or saved here.

use super::cdb::Cdb;
use super::sense::Sense;

const SUPPORTED: u8 = 0x00;
const TEMPERATURE: u8 = 0x0d;
const INFORMATIONAL_EXCEPTIONS: u8 = 0x2f;
const PAGES: [u8; 3] = [SUPPORTED, TEMPERATURE, INFORMATIONAL_EXCEPTIONS];
/// With page 0: pages together with their subpages. With another page: the subpages of it.
const ALL_SUBPAGES: u8 = 0xff;

/// A temperature that is not known (SPC-4 §7.3.21).
const UNKNOWN: u8 = 0xff;
/// Format and linking 11b: a list of binary values, of which nothing is saved or compared (SPC-4 §7.3.2).
const BINARY_LIST: u8 = 0x03;

/// The answer, not yet cut to the allocation length.
pub(super) fn sense(cdb: &Cdb) -> Result<Vec<u8>, Sense> {
    // SP: saving is not supported. PPC is obsolete.
    if cdb.0[1] & 0x03 != 0 {
        return Err(Sense::invalid_field_at(1));
    }
    let (control, page, subpage) = (cdb.0[2] >> 6, cdb.0[2] & 0x3f, cdb.0[3]);
    if !PAGES.contains(&page) {
        return Err(Sense::invalid_field_at(2));
    }
    if subpage != 0 && subpage != ALL_SUBPAGES {
        return Err(Sense::invalid_field_at(3));
    }
    let parameter = match (page, subpage) {
        (SUPPORTED, 0) => return Ok(with_header(page, subpage, &PAGES)),
        (SUPPORTED, _) => {
            let pairs: Vec<u8> = PAGES.iter().flat_map(|page| [*page, 0]).collect();
            return Ok(with_header(page, subpage, &pairs));
        }
        (_, ALL_SUBPAGES) => return Ok(with_header(page, subpage, &[page, 0])),
        (TEMPERATURE, _) => [0, 0, BINARY_LIST, 2, 0, UNKNOWN].as_slice(),
        // No exception is foretold: additional sense 00/00.
        _ => &[0, 0, BINARY_LIST, 4, 0, 0, UNKNOWN, 0],
    };
    // Threshold and default values belong to counters, of which these pages have none (PC 01b is current
    // cumulative).
    if control & 1 == 0 && control != 0 {
        return Err(Sense::invalid_field_at(2));
    }
    // The parameter pointer: parameters from this code on; the only one is 0.
    if cdb.u16_at(5) != 0 {
        return Err(Sense::invalid_field_at(5));
    }
    Ok(with_header(page, subpage, parameter))
}

fn with_header(page: u8, subpage: u8, body: &[u8]) -> Vec<u8> {
    // SPF.
    let has_subpage = if subpage == 0 { 0 } else { 0x40 };
    let mut data = vec![page | has_subpage, subpage];
    data.extend_from_slice(&(body.len() as u16).to_be_bytes());
    data.extend_from_slice(body);
    data
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(page: u8, subpage: u8) -> Result<Vec<u8>, Sense> {
        let mut cdb = [0; 16];
        cdb[..4].copy_from_slice(&[0x4d, 0, 0x40 | page, subpage]);
        sense(&Cdb(cdb))
    }

    #[test]
    fn every_page_that_is_listed_can_be_read() {
        let listed = ask(SUPPORTED, 0).unwrap();
        assert_eq!(listed[..4], [0, 0, 0, 3]);
        assert!(listed[4..].is_sorted());
        for page in &listed[4..] {
            let read = ask(*page, 0).unwrap();
            assert_eq!(read[0], *page);
            assert_eq!(usize::from(read[3]), read.len() - 4, "page {page:02x}");
        }
        assert_eq!(ask(SUPPORTED, 0xff).unwrap(), [0x40, 0xff, 0, 6, 0, 0, 0x0d, 0, 0x2f, 0]);
        assert_eq!(ask(TEMPERATURE, 0xff).unwrap(), [0x4d, 0xff, 0, 2, 0x0d, 0]);
    }

    #[test]
    fn a_temperature_that_nobody_measures_is_told_as_unknown() {
        assert_eq!(ask(TEMPERATURE, 0).unwrap(), [0x0d, 0, 0, 6, 0, 0, 3, 2, 0, 0xff]);
        assert_eq!(ask(INFORMATIONAL_EXCEPTIONS, 0).unwrap()[8..], [0, 0, 0xff, 0]);
    }

    #[test]
    fn what_is_not_kept_is_refused_at_its_byte() {
        assert_eq!(ask(0x02, 0), Err(Sense::invalid_field_at(2)));
        assert_eq!(ask(TEMPERATURE, 1), Err(Sense::invalid_field_at(3)));
        let mut cdb = [0; 16];
        for (byte, value) in [(1, 0x01), (2, 0x80 | TEMPERATURE), (6, 1)] {
            cdb[..3].copy_from_slice(&[0x4d, 0, 0x40 | TEMPERATURE]);
            cdb[byte] = value;
            assert!(sense(&Cdb(cdb)).is_err(), "byte {byte}");
            cdb = [0; 16];
        }
    }
}
