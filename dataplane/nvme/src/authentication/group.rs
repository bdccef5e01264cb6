//! Diffie-Hellman over the finite fields of RFC 7919.

use std::sync::OnceLock;

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};

/// A Diffie-Hellman group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// No exchange: a response is as hard to guess as the secret, which is 256 random bits or more.
    Null,
    /// ffdhe2048
    Ffdhe2048,
    /// ffdhe3072
    Ffdhe3072,
    /// ffdhe4096
    Ffdhe4096,
    /// ffdhe6144
    Ffdhe6144,
    /// ffdhe8192
    Ffdhe8192,
}

impl Group {
    /// In the order in which a target prefers them: a real exchange before none, and of those the
    /// cheapest, since whoever connects can make the target compute.
    pub(super) const PREFERRED: [Group; 6] = [
        Group::Ffdhe2048,
        Group::Ffdhe3072,
        Group::Ffdhe4096,
        Group::Ffdhe6144,
        Group::Ffdhe8192,
        Group::Null,
    ];

    pub(super) const fn code(self) -> u8 {
        match self {
            Group::Null => 0,
            Group::Ffdhe2048 => 1,
            Group::Ffdhe3072 => 2,
            Group::Ffdhe4096 => 3,
            Group::Ffdhe6144 => 4,
            Group::Ffdhe8192 => 5,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        Self::PREFERRED.into_iter().find(|group| group.code() == code)
    }

    /// Bits of the prime, what RFC 7919 adds to its middle, and bytes of a private exponent: twice
    /// the group's strength and more (RFC 7919 §5.2 and appendix A).
    const fn parameters(self) -> Option<(usize, u32, usize)> {
        match self {
            Group::Null => None,
            Group::Ffdhe2048 => Some((2048, 560_316, 32)),
            Group::Ffdhe3072 => Some((3072, 2_625_351, 40)),
            Group::Ffdhe4096 => Some((4096, 5_736_041, 48)),
            Group::Ffdhe6144 => Some((6144, 15_705_020, 56)),
            Group::Ffdhe8192 => Some((8192, 10_965_728, 64)),
        }
    }

    /// Length of a public value, bytes; 0 for the null group.
    pub(super) const fn length(self) -> usize {
        match self.parameters() {
            None => 0,
            Some((bits, _, _)) => bits / 8,
        }
    }

    /// The numbers modulo the prime.
    fn field(self) -> Option<&'static BoxedMontyParams> {
        static FIELDS: [OnceLock<BoxedMontyParams>; 6] = [const { OnceLock::new() }; 6];
        let (bits, addend, _) = self.parameters()?;
        let field = FIELDS[usize::from(self.code())].get_or_init(|| {
            let prime = BoxedUint::from_be_slice(&prime(bits, addend), bits as u32)
                .expect("the prime has this many bits");
            let odd = Option::from(Odd::new(prime)).expect("its last bit is set");
            BoxedMontyParams::new_vartime(odd)
        });
        Some(field)
    }
}

/// 2^b - 2^(b-64) + ([2^(b-130) e] + addend) 2^64 - 1, big-endian (RFC 7919 appendix A).
pub(super) fn prime(bits: usize, addend: u32) -> Vec<u8> {
    // e as the sum of 1/k!, in words from the highest, with one word more than is used.
    let middle = (bits - 128) / 32;
    let mut term = vec![0u32; middle + 2];
    // 2^(b-130) is bit 2 from the top of the middle part.
    term[0] = 1 << 30;
    let mut sum = vec![0u32; middle + 2];
    let mut divisor = 1u32;
    while term.iter().any(|word| *word != 0) {
        add(&mut sum, &term);
        divide(&mut term, divisor);
        divisor += 1;
    }
    sum.truncate(middle);
    let mut extra = vec![0u32; middle];
    // The last "- 1" borrows from the middle part, and leaves ones below it.
    extra[middle - 1] = addend - 1;
    add(&mut sum, &extra);
    let words = sum.iter().flat_map(|word| word.to_be_bytes());
    [0xFF; 8].into_iter().chain(words).chain([0xFF; 8]).collect()
}

fn add(sum: &mut [u32], term: &[u32]) {
    let mut carry = 0;
    for (sum, term) in sum.iter_mut().zip(term).rev() {
        let total = u64::from(*sum) + u64::from(*term) + carry;
        *sum = total as u32;
        carry = total >> 32;
    }
}

fn divide(number: &mut [u32], divisor: u32) {
    let mut rest = 0;
    for word in number {
        let dividend = rest << 32 | u64::from(*word);
        *word = (dividend / u64::from(divisor)) as u32;
        rest = dividend % u64::from(divisor);
    }
}

/// A private exponent of this side.
pub(super) struct PrivateValue {
    group: Group,
    exponent: BoxedUint,
    bits: u32,
}

impl PrivateValue {
    /// From random bytes, at least 64 of them; `None` with the null group.
    pub(super) fn new(group: Group, random: &[u8]) -> Option<Self> {
        let (_, _, bytes) = group.parameters()?;
        let bits = bytes as u32 * 8;
        let exponent = BoxedUint::from_be_slice(random.get(..bytes)?, bits).ok()?;
        Some(PrivateValue { group, exponent, bits })
    }

    /// g to the exponent, of the group's length.
    pub(super) fn public(&self) -> Vec<u8> {
        let mut generator = vec![0; self.group.length()];
        if let Some(last) = generator.last_mut() {
            *last = 2;
        }
        self.power(&generator).unwrap_or_default()
    }

    /// The secret shared with whom `public` comes from; `None` if that is no public value: of another
    /// length, or one of those that would make the secret known to all.
    pub(super) fn shared(&self, public: &[u8]) -> Option<Vec<u8>> {
        let field = self.group.field()?;
        if public.len() != self.group.length() {
            return None;
        }
        let value = BoxedUint::from_be_slice(public, field.bits_precision()).ok()?;
        let modulus = field.modulus().as_ref();
        let one = BoxedUint::one_with_precision(field.bits_precision());
        let highest = modulus.wrapping_sub(&one).wrapping_sub(&one);
        if value <= one || value > highest {
            return None;
        }
        self.power(public)
    }

    fn power(&self, base: &[u8]) -> Option<Vec<u8>> {
        let field = self.group.field()?;
        let base = BoxedUint::from_be_slice(base, field.bits_precision()).ok()?;
        let base = BoxedMontyForm::new(base, field);
        let result = base.pow_bounded_exp(&self.exponent, self.bits).retrieve();
        Some(result.to_be_bytes().into_vec())
    }
}
