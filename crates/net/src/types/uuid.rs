use std::fmt;
use std::str::FromStr;

/// A UUID of any version, in the order in which it is written.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Uuid([u8; 16]);

/// A text that is no UUID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a UUID: write 32 hexadecimal digits, as in 09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4f")]
pub struct ParseUuidError(String);

impl Uuid {
    /// The UUID of these octets.
    pub const fn new(octets: [u8; 16]) -> Self {
        Self(octets)
    }

    /// A UUID made from a number: version 8 of RFC 9562, for things without a UUID of their own.
    pub const fn of(number: u128) -> Self {
        let mut octets = number.to_be_bytes();
        octets[6] = octets[6] & 0x0f | 0x80;
        octets[8] = octets[8] & 0x3f | 0x80;
        Self(octets)
    }

    /// Its octets.
    pub const fn octets(self) -> [u8; 16] {
        self.0
    }

    /// Whether its octets are all the same, as from firmware that has no UUID.
    pub fn is_blank(self) -> bool {
        self.0.iter().all(|octet| *octet == self.0[0])
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, octet) in self.0.iter().enumerate() {
            if matches!(n, 4 | 6 | 8 | 10) {
                f.write_str("-")?;
            }
            write!(f, "{octet:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Uuid {
    type Err = ParseUuidError;

    /// With its hyphens or without any.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseUuidError(text.chars().take(64).collect());
        let hyphens: Vec<usize> = text.match_indices('-').map(|(at, _)| at).collect();
        if !matches!(hyphens[..], [] | [8, 13, 18, 23]) {
            return Err(error());
        }
        let digits: Vec<u8> = text
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
            .collect::<Option<_>>()
            .ok_or_else(error)?;
        let octets: Vec<u8> = digits
            .chunks(2)
            .map(|pair| pair.iter().fold(0, |all, digit| all << 4 | digit))
            .collect();
        if digits.len() != 32 {
            return Err(error());
        }
        octets.try_into().map(Self).map_err(|_| error())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(octets: [u8; 16]) {
            let uuid = Uuid::new(octets);
            prop_assert_eq!(uuid.to_string().parse(), Ok(uuid));
            prop_assert_eq!(uuid.to_string().to_uppercase().replace('-', "").parse(), Ok(uuid));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text: String) {
            let _ = text.parse::<Uuid>();
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in [
            "",
            "09b11c53",
            "09b11c538-b5c-4eeb-8f00-d84eaa0aaa4f",
            "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4fa",
            "09b11c53-8b5c-4eeb-8f00-d84eaa0aaa4ä",
        ] {
            assert!(text.parse::<Uuid>().is_err(), "{text}");
        }
    }

    #[test]
    fn one_of_a_number_says_so() {
        assert_eq!(Uuid::of(0).to_string(), "00000000-0000-8000-8000-000000000000");
        assert_eq!(
            Uuid::of(u128::MAX).to_string(),
            "ffffffff-ffff-8fff-bfff-ffffffffffff"
        );
        assert!(Uuid::new([0xff; 16]).is_blank() && !Uuid::of(0).is_blank());
    }
}
